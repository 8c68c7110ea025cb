"""Ten kinds of secrets and more, all made up, and the places where people leave them. Put together here, so that no
scanner of repositories takes them for real."""

from __future__ import annotations

import base64

_BODY = base64.b64encode(b"x" * 48).decode()

SECRETS: dict[str, str] = {
    "aws id": "AKIA" + "Q3EGRIZ7YV5K2P4M",
    "aws secret": "wJalrXUtnFEMI/K7MDENG/" + "bPxRfiCYZ3XAMPLEKEY",
    "hugging face": "hf_" + "AbCdEfGhIjKlMnOpQrStUvWxYz012345",
    "wandb": "wandb_v1_" + "AbCdEfGhIjKlMnOpQrStUvWxYz0123456789",
    "github": "ghp_" + "AbCdEfGhIjKlMnOpQrStUvWxYz0123456789",
    "openai": "sk-" + "proj-AbCdEfGhIjKlMnOpQrStUvWx0123",
    "login": "somebody:" + "hunter2-long-password",
    "signature": "Zm9vYmFyYmF6" + "cXV4cXV1eA%3D%3D",
    "amazon signature": "fe5f80f77d5fa3beca038a248ff027" + "d0445342fe2855ddc963176630326f1024",
    "google": "-----BEGIN PRIVATE " + f"KEY-----\n{_BODY}\n{_BODY}\n-----END PRIVATE KEY-----\n",
    "jwt": "eyJhbGciOiJIUzI1NiJ9" + ".eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N",
    "bearer": "mF_9.B5f-4.1JqM" + "0123456789",
    "slack": "xoxb-" + "123456789012-abcdefghijkl",
    "api key": "q7w8e9r0t1y2" + "u3i4o5p6",
}
_ANYWHERE = ("{}", "a tag {}, and more", "/srv/{}/x.jsonl", "failed: {} is wrong", "-s name={}")
SENTENCES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("aws id", "hugging face", "wandb", "github", "openai", "slack", "jwt"), _ANYWHERE),
    "aws secret": ("aws_secret_access_key = {}", "AWS_SECRET_ACCESS_KEY={}", '"secret_key": "{}"'),
    "login": ("https://{}@host/x.jsonl", "cannot open s3://{}@bucket/x: 403"),
    "signature": ("https://host/c/x.jsonl?sv=2024&sig={}", "https://host/x?token={}&a=b"),
    "amazon signature": (
        "https://host/x.jsonl?X-Amz-Date=1&X-Amz-Signature={}",
        "https://h/?X-Amz-Security-Token={}&b=1",
    ),
    "google": ("{}", 'private_key: "{}"'),
    "bearer": ("Authorization: Bearer {}", "curl -H 'authorization: bearer {}'"),
    "api key": ("api_key={}", "apikey: {}", '{{"api-key": "{}"}}', "--client-secret={}"),
}
