"""Checks the messages of the page: they may come from anywhere, and hold anything."""


class Refused(ValueError):
    """Signals a message that cannot be answered; its text is shown to the person."""


def command(message):
    """Returns the command of a message, a str; of anything that is no message, its text."""
    return str(message.get("do") if isinstance(message, dict) else message)


def number(message, key, low, high, default=None):
    """Returns a number of a message."""
    value = message.get(key, default)
    real = isinstance(value, int | float) and not isinstance(value, bool)
    if not real or not low <= value <= high:  # nor does NaN lie between the two
        raise Refused(f"{key}: expected a number from {low} to {high}, got {str(value)[:80]!r}")
    return value


def values(message, count):
    """Returns the values along `count` axes, each from -1 to 1; missing ones are 0."""
    numbers = message.get("values")
    good = isinstance(numbers, list) and len(numbers) <= count
    if not good or not all(isinstance(x, int | float) and -1 <= x <= 1 for x in numbers):
        raise Refused(
            f"values: expected up to {count} numbers from -1 to 1, got {str(numbers)[:80]!r}"
        )
    return [float(x) for x in numbers] + [0.0] * (count - len(numbers))
