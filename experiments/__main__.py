"""Lists the commands of this folder: `python -m experiments`."""

import ast
import pathlib

FOLDER = pathlib.Path(__file__).parent


def commands() -> dict[str, str]:
    """Returns the first sentence of each command's text, by its name."""
    files = {file.parent.name: file for file in FOLDER.glob("*/__main__.py")}
    files["demo"] = FOLDER / "demo.py"
    texts = {
        name: ast.get_docstring(ast.parse(file.read_text("utf-8"))) or ""
        for name, file in sorted(files.items())
    }
    return {name: text.partition("\n\n")[0] for name, text in texts.items()}


def main() -> None:
    """Prints them."""
    for name, says in commands().items():
        print(f"python -m experiments.{name:12} {' '.join(says.split())}")
    print("\nEach has its flags: python -m experiments.NAME --help")


if __name__ == "__main__":
    main()
