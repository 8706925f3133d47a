"""The one exception for what a user can mend: its text is the single line that the job prints."""


class UserError(Exception):
    """Something outside the code is wrong; the message says what, where and what to do about it."""


def one_line(error: BaseException) -> str:
    """What another library raised, for a message: its kind and text without line breaks, at most 300 characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
