"""HTJ2K frames that OpenJPH 0.26 encoded, of pixels that a formula gives: 9 rows, 11 columns.

The decoder under test is OpenJPEG; nothing of OpenJPH is needed to run the tests.
"""

from __future__ import annotations

import base64

import numpy as np
from numpy.typing import NDArray


def pixels(samples: int, low: int, high: int) -> NDArray[np.int64]:
    """Return the pixels that were encoded."""
    rows, columns, sample = np.mgrid[:9, :11, :samples]
    return low + ((rows * rows * 7 + columns * columns * 13 + rows * columns * 5 + sample * 31) * 97) % (high - low + 1)


def frame(name: str) -> bytes:
    """Return an encoded frame."""
    return base64.b64decode("".join(_FRAMES[name].split()))


_FRAMES = {
    "u8": """
        /0//UQApQAAAAAALAAAACQAAAAAAAAAAAAAACwAAAAkAAAAAAAAAAAABBwEB/1AACAACAAAAAv9SAAwAAgABAAIEBEAB/1wACiBIUFBQSEhI/2
        QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAALQAAf+TwCvABmhbGgcqygAIl3/IvZgAwBXwBVQBWJI/CLiTBPkAES9/kXs4AEIu6jv4
        Acm/lQBElO15O/oAAAD+tgDALpIBdFALaCQzSPIyRFKOhJg4JyeLTCATcsRsRmYzACBf7m7zQwvAEAGdADBYE9pqt1pNDU0NjTBQzU0QECFa2p
        oa/hko8iMIAAFwugD/fv98+fv3/3//e/9z9+8ARHqTjDoQgYu7AP/Z
    """,
    "u16": """
        /0//UQApQAAAAAALAAAACQAAAAAAAAAAAAAACwAAAAkAAAAAAAAAAAABDwEB/1AACAACAAAACv9SAAwAAgABAAIEBEAB/1wACiCIkJCQiIiI/2
        QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAAQoAAf+TwAAtkGEgAekBQTw73UItHLRgbO0AGJf8qQD7OQDAABbUAAFoQAAWmGccZ1eW
        QmfvppiDh2W5pc8o8xQl5oSAfpgAN8oNfqsYkTfdWABjgL+WAP4V/0X8h/8H/M//V/4AhIG/lgDAAC7uAAF2kAALdNnJzuzMTnZCdgqJXXYaiQ
        2JRXaSnWQnJBaJRXZqdgqJFYltdlJ2IjtJYpOdRGICgXZ3PCRWN6SAIb0ATTW1qU01FZpKTUVYXVOpqdRUbCo0FU1FUwGrweqaCrA6WH1TsanU
        VIDVAMOUioQgYCG6AP9//3//f/6//x//f/5//n//f4FAsuD2PSP6g7sA/9k=
    """,
    "i16": """
        /0//UQApQAAAAAALAAAACQAAAAAAAAAAAAAACwAAAAkAAAAAAAAAAAABjwEB/1AACAACAAAACv9SAAwAAgABAAIEBEAB/1wACiCIkJCQiIiI/2
        QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAAQoAAf+TwAAtkGEgAekBQTw73UItHLRgbO0AGJf8qQD7OQDAABbUAAFoQAAWmGccZ1eW
        QmfvppiDh2W5pc8o8xQl5oSAfpgAN8oNfqsYkTfdWABjgL+WAP4V/0X8h/8H/M//V/4AhIG/lgDAAC7uAAF2kAALdNnJzuzMTnZCdgqJXXYaiQ
        2JRXaSnWQnJBaJRXZqdgqJFYltdlJ2IjtJYpOdRGICgXZ3PCRWN6SAIb0ATTW1qU01FZpKTUVYXVOpqdRUbCo0FU1FUwGrweqaCrA6WH1TsanU
        VIDVAMOUioQgYCG6AP9//3//f/6//x//f/5//n//f4FAsuD2PSP6g7sA/9k=
    """,
    "rgb": """
        /0//UQAvQAAAAAALAAAACQAAAAAAAAAAAAAACwAAAAkAAAAAAAAAAAADBwEBBwEBBwEB/1AACAACAAAAA/9SAAwAAgABAQIEBEAB/1wACiBQWF
        hYUFBQ/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAAfwAAf+TwBWgC45Hl6r0AyXmSb6XAMAWgA9Wr9fY1ZX5AAJeYEG9mADAFoAW
        HBcpAC7kOwEC3AAAvZgAwAr4AVMAKoAsaRCy+ZqS/ghboIF6twB9iLm8AJN5tQCmkNTq7AAgfZUAwAtKAFVACtATVvB4oXWw2bL5AQLcEQG+mA
        C6jm2p/AHIv5UAdy7HxC0M/gAQgL2WAMALRgBVQArAKie+yzqXEZTwBEv+EIC+mABqzNsN7gEQ+LUAqWUMraf7AACAfpYAwBdDAFuQBbTUQFaA
        ItKETtg5EiUQIZMIgiKRUpMEFqe5uGgjfBBGvAAdogiB+rZtgL4HAzDaVACk0QX8AlaWcI1SJrkAn7/Pj+fj/Xq+n6/H9/F4P987zQhvAAAYmQ
        DAF0kAXQQBbgB++PLn9cfD1++//vL1wd/v39uPh/f79wEFgDu6eHWPwiARnQD+3+fD08fr48/X5/ff49vH88fH98fvAqCsYZhABlB6AP78/3/5
        /f99+/38/v75+/P/TwOrowh+EIF3OgDAF0UAXQQBbYA+Hv5+f6/f5+P1+/l4e3r8ev19Pj8AAu9c60CMHwBA0z0APr/+H7/H8/99/3nDpz98+P
        b34/vzCe4YBBiEACByOwB+/P3/ec/Pv/9//v7954/fBiNnwZByIIHuOwD/2Q==
    """,
    "lossy": """
        /0//UQApQAAAAAALAAAACQAAAAAAAAAAAAAACwAAAAkAAAAAAAAAAAABBwEB/1AACAACAAAAIP9SAAwAAgABAAIEBEAA/1wAESI0azTSNNI1PC
        yoLKgsTv9kABcAAU9wZW5KUEggVmVyIDAuMjYuMy7/kAAKAAAAAABiAAH/k8FSgAoAKn9/2XcAwTwSwTCwWX/p+3YAMEq2VACo9Wl8tADC0IV8
        K0A4kjKbxv5l2zdn+6LyAzoAhut64IdW/WSgd3HaSHgAU/C7GNRMdKxnWYu4AP/Z
    """,
}
"""The last one was encoded with loss."""
