"""The one exception for what a user can mend: its text is the single line that the job prints."""


class UserError(Exception):
    """Something outside the code is wrong; the message says what, where and what to do about it."""
