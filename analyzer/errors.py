"""What the caller or the machine did wrong.  What the traffic did wrong is an anomaly, never one of these."""


class MailhopError(Exception):
    """A fault of use or of the machine: says what, where, why and how to fix it.

    Attributes: `what` one sentence; `fix` what to do about it, or "".
    """

    def __init__(self, what: str, fix: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.what}; {self.fix}" if self.fix else self.what


class CaptureError(MailhopError):
    """Nothing can be read: no such file, no permission, not a capture, empty."""


class KeyLogError(MailhopError):
    """A key log cannot be read or is none."""


class ExpressionError(MailhopError):
    """An expression of `--where` cannot be understood.

    Attributes: `text` the expression; `at` the place in it where reading stopped, in characters.
    """

    def __init__(self, what: str, text: str, at: int, fix: str = "") -> None:
        super().__init__(what, fix)
        self.text = text
        self.at = at


class MessageNotFound(MailhopError):
    """No message, or more than one, answers to what was asked for."""
