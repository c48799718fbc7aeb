"""Secrets that webhooks are signed with, checked before anything is signed: a receiver could verify none of the rest.

Source: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md#signature-scheme
"""

import base64
import binascii
from typing import Final

from tidegate.settings.problems import SettingsError

PREFIX: Final = "whsec_"
BYTES_MIN, BYTES_MAX = 24, 64


def read_webhook_secrets(setting: str, text: str) -> list[str]:
    """Return the secrets in `text`, the first one the newest. Raises SettingsError, which quotes no secret."""
    secrets = text.split()
    if not secrets:
        raise SettingsError([f"{setting}: is missing: needs {PREFIX}… secrets with spaces between them"])
    for number, secret in enumerate(secrets, 1):
        if wrong := _wrong(secret):
            raise SettingsError([f"{setting}: secret {number} of {len(secrets)} {wrong}"])
    return secrets


def _wrong(secret: str) -> str:
    """Say what is wrong with a secret, without any part of it; empty where nothing is."""
    if "," in secret:
        return "has a comma in it: needs spaces between secrets, and no version such as v1 before one"
    if secret.startswith(("whsk_", "whpk_")):
        return f"is of an asymmetric key pair: needs a symmetric one, {PREFIX}…"
    if not secret.startswith(PREFIX):
        return f"needs to begin with {PREFIX}"
    encoded = secret.removeprefix(PREFIX).rstrip("=")
    try:
        size = len(base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True))
    except (binascii.Error, ValueError):
        return f"needs base64 after {PREFIX}"
    if not BYTES_MIN <= size <= BYTES_MAX:
        return f"needs {BYTES_MIN} to {BYTES_MAX} random bytes as base64 after {PREFIX}, has {size}"
    return ""
