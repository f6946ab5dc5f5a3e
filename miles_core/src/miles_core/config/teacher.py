"""The teacher of on-policy distillation."""

from __future__ import annotations

from dataclasses import dataclass

from miles_core.options import option


@dataclass(frozen=True)
class TeacherOptions:
    """Teacher"""

    teacher_load: str | None = option(
        None,
        flag="--teacher-load",
        metavar="DIR",
        help="HF directory of the teacher, scored in the trainer: any architecture and size with the policy's tokens.",
    )
    teacher_url: str | None = option(
        None, flag="--teacher-url", metavar="URL", help="Server with SGLang's /generate that scores responses as the teacher."
    )
    teacher_timeout: float = option(120.0, flag="--teacher-timeout", help="Seconds that one call to --teacher-url may take.")
    teacher_concurrency: int = option(64, flag="--teacher-concurrency", help="Most calls to --teacher-url at a time.")
    teacher_retries: int = option(
        3, flag="--teacher-retries", help="How often a call to --teacher-url that failed is repeated, with growing pauses."
    )
    teacher_api_key: str | None = option(
        None,
        flag="--teacher-api-key",
        metavar="KEY",
        secret=True,
        help="Bearer token for --teacher-url. Taken from the environment variable MILES_TEACHER_API_KEY only.",
    )
