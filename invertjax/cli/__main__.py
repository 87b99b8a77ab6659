"""The command `invertjax`, of the installed package.

    invertjax audit --update=u.npz --params=p.npz --loss=my_module:loss_fn \\
        --image_shape=32,32,3 --batch_size=1 --num_classes=10
    invertjax audit --help
    invertjax --version
    invertjax --completion=bash     (zsh, fish: what it prints goes into your profile)

What it needs beyond the library is in `pip install "invertjax[cli,report]"`.
"""

import importlib
import sys
from collections.abc import Sequence

COMMANDS = {"audit": "Attacks an update, and reports what it gives away."}
SHELLS = ("bash", "zsh", "fish")
BAD_INPUT = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command, and returns its exit code."""
    argv = list(sys.argv if argv is None else argv)
    first, *rest = argv[1:] or ["--help"]
    if first in ("-h", "--help"):
        print(__doc__)
        print("commands:", *(f"  {name:8}{says}" for name, says in COMMANDS.items()),
              sep="\n")  # fmt: skip
        return 0
    if first == "--version":
        import invertjax

        print(invertjax.__version__)
        return 0
    try:
        if first.startswith("--completion="):
            return _completion(first.partition("=")[2])
        if first in COMMANDS:
            command = importlib.import_module(f"invertjax.cli.{first}")
            return command.main([f"invertjax {first}", *rest])
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        if package == "invertjax":
            raise
        return _refused(
            f"there is no module {package!r}, which the commands need: pip install "
            '"invertjax[cli,report]".'
        )
    known = ", ".join(COMMANDS)
    return _refused(f"{first}: no such command, expected {known} or --help.")


def _refused(line: str) -> int:
    print(f"error: {line}", file=sys.stderr)
    return BAD_INPUT


def _completion(shell: str) -> int:
    """Prints what completes commands and flags in a shell."""
    if shell not in SHELLS:
        return _refused(
            f"--completion={shell}: no such shell, expected {', '.join(SHELLS)}."
        )
    flags = {
        name: importlib.import_module(f"invertjax.cli.{name}").flag_names()
        for name in COMMANDS
    }
    if shell == "fish":
        for name, says in COMMANDS.items():
            print(
                f"complete -c invertjax -n __fish_use_subcommand -a {name} -d '{says}'"
            )
            for flag in flags[name]:
                print(f"complete -c invertjax -n '__fish_seen_subcommand_from {name}' "
                      f"-l {flag}")  # fmt: skip
        return 0
    if shell == "zsh":
        print("autoload -U +X bashcompinit && bashcompinit")
    words = " ".join((*COMMANDS, "--help", "--version"))
    cases = "".join(
        f"    {name}) words='{' '.join(f'--{flag}' for flag in flags[name])}' ;;\n"
        for name in COMMANDS
    )
    print(
        "_invertjax() {\n"
        f"  local words='{words}'\n"
        '  [ "$COMP_CWORD" -gt 1 ] && case "${COMP_WORDS[1]}" in\n'
        f"{cases}"
        "  esac\n"
        '  COMPREPLY=($(compgen -W "$words" -- "${COMP_WORDS[COMP_CWORD]}"))\n'
        "}\n"
        "complete -o default -o nospace -F _invertjax invertjax"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
