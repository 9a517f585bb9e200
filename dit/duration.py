"""How a time is written for a person, wherever one is shown."""


def duration(seconds: float | int) -> str:
    """`4 s`, `3 min 20 s`, `2 h 05 min` or `3 d 4 h`."""
    s = round(seconds)
    if s < 60:
        return f"{s} s"
    if s < 3600:
        return f"{s // 60} min {s % 60:02d} s"
    if s < 86400:
        return f"{s // 3600} h {s % 3600 // 60:02d} min"
    return f"{s // 86400} d {s % 86400 // 3600} h"
