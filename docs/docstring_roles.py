"""An extension of griffe, which reads docstrings for the site: roles such as :func:`name` become `name`."""

import re
from typing import Any

import griffe


class DocstringRoles(griffe.Extension):
    """Removes the roles of reStructuredText from all docstrings."""

    def on_object(self, *, obj: griffe.Object, **_kwargs: Any) -> None:
        """Change the docstring of a module, class, function or attribute."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r":[a-z]+:`~?([^`]+)`", r"`\1`", obj.docstring.value)
