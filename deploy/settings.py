"""KEY=VALUE words of the command line."""

from typing import Any

import yaml

from router.errors import ConfigError


def parse_setting(text: str, option: str = "--set") -> tuple[str, Any]:
    """KEY=VALUE with the value read as YAML, as it would be in the file. Raises ConfigError."""
    key, equals, value = text.partition("=")
    if not (key.strip() and equals):
        raise ConfigError(
            f"{option} {text!r} is not KEY=VALUE. Write it like {option} pool.shards=4."
        )
    try:
        return key.strip(), yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"{option} {text!r}: the value is not valid YAML. Put quotes around it: "
            f"{option} {key}='\"...\"'."
        ) from error
