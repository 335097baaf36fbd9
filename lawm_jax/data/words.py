"""Words of messages."""


def counted(count, noun):
    """Returns a number, or text such as "3 and 1", with its noun: "1 clip", "2 clips"."""
    return f"{count} {noun}{'' if str(count) == '1' else 's'}"
