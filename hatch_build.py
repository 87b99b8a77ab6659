"""Makes the links of the README absolute in the wheel, so that PyPI can follow them.

The address is `[project.urls]` Repository of pyproject.toml, and stands nowhere else.
"""

import pathlib
import re

from hatchling.metadata.plugin.interface import MetadataHookInterface

# ](docs/page.md) and ](docs/picture.png), not ](https://...) and not ](#heading)
_RELATIVE = re.compile(r"\]\((?![a-z]+:|#)([^)\s]+)\)")
_PICTURES = (".png", ".svg", ".gif")


def absolute(text: str, repository: str) -> str:
    """Returns Markdown whose relative links lead into a repository."""

    def link(match: re.Match[str]) -> str:
        path = match[1]
        kind = "raw" if path.endswith(_PICTURES) else "blob"
        return f"]({repository}/{kind}/HEAD/{path})"

    return _RELATIVE.sub(link, text)


class Readme(MetadataHookInterface):
    """Sets the project's readme; hatchling calls it while it builds."""

    PLUGIN_NAME = "custom"

    def update(self, metadata: dict) -> None:
        text = (pathlib.Path(self.root) / "README.md").read_text("utf-8")
        repository = metadata["urls"]["Repository"]
        metadata["readme"] = {
            "content-type": "text/markdown",
            "text": absolute(text, repository),
        }
