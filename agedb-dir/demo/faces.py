"""Shapes of a made-up face whose age can be read from it; `demo/picture.py` draws them.

Proportions, hair, skin and wrinkles follow an apparent age: the label plus normal noise of three
years or more in adults. Gender, skin tone, hair style and pose vary independently. All numbers here
are chosen by eye.
"""

from types import SimpleNamespace

import numpy as np

SKIN = ((250, 224, 205), (238, 196, 162), (206, 152, 112), (150, 102, 72), (96, 64, 48))
HAIR = ((28, 24, 24), (40, 30, 26), (58, 40, 28), (104, 70, 42), (196, 160, 100), (146, 72, 38))
IRIS = ((70, 45, 25), (60, 90, 120), (75, 95, 60), (40, 25, 15))
# Lengths by age, in half widths of an adult's face; y runs downwards from the bridge of the nose.
SHAPE = """
age    0     3     8     14    20    40    60    80    100
width  1.03  1.02  0.97  0.92  0.89  0.91  0.93  0.93  0.90
crown  1.28  1.28  1.25  1.23  1.22  1.21  1.20  1.18  1.15
chin   0.84  0.92  1.07  1.22  1.33  1.35  1.36  1.38  1.38
eye_y  0.28  0.24  0.14  0.06  0.01  0.00  0.01  0.03  0.05
eye_r  .240  .230  .205  .190  .180  .170  .160  .150  .140
lid    1.08  1.05  1.00  0.98  0.96  0.90  0.78  0.64  0.56
nose_y 0.50  0.50  0.51  0.53  0.56  0.58  0.61  0.65  0.68
nose_r .105  .115  .130  .150  .165  .180  .195  .210  .220
lips_y 0.67  0.71  0.78  0.85  0.90  0.92  0.95  0.99  1.01
lips_w 0.19  0.21  0.25  0.28  0.31  0.32  0.32  0.31  0.30
lips_h .085  .085  .085  .090  .095  .085  .065  .045  .035
cheek  0.05  0.04  0.01  0.00  0.00  0.01  0.05  0.09  0.08
ear    0.20  0.21  0.23  0.25  0.26  0.27  0.30  0.33  0.35
neck   0.40  0.44  0.50  0.55  0.60  0.62  0.62  0.58  0.54
body   0.75  0.85  1.10  1.40  1.65  1.75  1.75  1.65  1.55
"""
# One shape a row: layer, part, colour, opacity (two values, the ages that they belong to), then in
# the part's own units an ellipse (x y, radii) or a curve (x y of start, bend and end, width).
# What is not symmetric is drawn on both sides.
PARTS = """
long  back  hair    1   1   0  99   0 0  1 1
base  body  clothes 1   1   0  99   0 0  1 1
base  neck  shade   1   1   0  99   0 0  1 1.2
base  ear   shade   1   1   0  99   0 0  1 1
base  ear   shadow  .5  .5  0  99   .1 0  .5 .6
soft  eye   shadow  .15 .45 30 95   0 0  1.5 1.2
soft  side  shadow  .10 .35 10 60   .10 -.55  .12 -.25  .18 -.05  .09
soft  side  shadow  0   .50 45 99   .68 .25  .13 .30
soft  jaw   shadow  0   .50 45 90   .50 -.16  .16 .10
soft  jaw   shadow  .40 .50 20 80   -.35 .02  0 .12  .35 .02  .12
soft  side  blush   .45 0   2  22   .55 .02  .22 .17
beard side  hair    .85 .85 0  99   -.80 -.25  0 1.66  .80 -.25  .46
line  brow  shadow  0   .80 24 80   -.55 -.24  0 -.36  .55 -.24  .040
line  brow  shadow  0   .75 32 84   -.50 -.39  0 -.51  .50 -.39  .040
line  brow  shadow  0   .70 40 88   -.46 -.54  0 -.66  .46 -.54  .040
line  brow  shadow  0   .65 48 92   -.40 -.69  0 -.81  .40 -.69  .040
line  eye   shadow  .05 .80 24 75   -1 .45  0 2.1  1 .45  .25
line  eye   shadow  0   .70 45 90   -.9 .95  .2 3.2  1.2 .7  .22
line  eye   shadow  0   .70 26 74   1.2 -.2  1.7 -.5  2.2 -.8  .18
line  eye   shadow  0   .70 34 82   1.2 .4  1.7 .8  2.1 1.2  .18
line  side  shadow  .06 .85 16 72   .20 -.05  .42 .10  .46 .33  .050
line  side  shadow  0   .75 42 86   .38 .38  .45 .48  .42 .62  .045
line  side  shadow  0   .60 58 97   .60 -.10  .72 .15  .62 .38  .032
line  brow  shadow  0   .75 34 82   .07 -.12  .11 -.02  .08 .08  .040
face  nose  shadow  .50 .60 10 60   -1 -.2  0 .7  1 -.2  .28
face  nose  dark    .60 .70 10 60   .5 -.02  .25 .16
face  eye   white   1   1   0  99   0 0  1 .62
face  eye   iris    1   1   0  99   0 -.04  .52 .58
face  eye   dark    1   1   0  99   0 -.04  .26 .30
face  eye   white   1   1   0  99   .18 -.22  .10 .12
face  eye   dark    .90 .80 20 90   -1.1 .1  0 -1.35  1.15 0  .34
face  brow  brow    .35 .90 0  14   .20 .02  .46 -.10  .66 .06  .075
male  brow  brow    0   .80 12 20   .20 -.02  .46 -.14  .68 .04  .075
face  lips  lip     1   1   0  99   -1 0  0 -1.1  1 0  .30
face  lips  lip     1   1   0  99   -1 0  0 1.7  1 0  .42
face  lips  dark    .80 .80 0  99   -1 0  0 .2  1 0  .12
teeth lips  white   1   1   0  99   -.85 0  0 .3  .85 0  .30
glass frame dark    1   1   0  99   -1 0  0 -2.1  1 0  .07
glass frame dark    1   1   0  99   -1 0  0 2.1  1 0  .07
glass frame dark    1   1   0  99   -1 0  -1.2 -.2  -1.4 -.2  .07
"""
CIRCLE = np.exp(1j * np.linspace(0, 2 * np.pi, 41))  # points are complex numbers x + iy
STEPS = np.linspace(0, 1, 9)
BEZIER = np.stack([(1 - STEPS) ** 2, 2 * STEPS * (1 - STEPS), STEPS**2], axis=1)
SLOPE = np.stack([2 * STEPS - 2, 2 - 4 * STEPS, 2 * STEPS], axis=1)


def ramp(value, low, high):
    """0 up to `low`, 1 from `high`, linear between."""
    return min(max((value - low) / (high - low), 0.0), 1.0)


def mix(first, second, share):
    """Colour between two, `share` of the second: a tuple of integers."""
    return tuple(int(a + (b - a) * share) for a, b in zip(first, second))


def curve(points, width):
    """Outline of a quadratic Bézier curve of three points, thin at its ends."""
    line, along = BEZIER @ points, SLOPE @ points
    half = 0.5j * width * np.sin(np.pi * (0.1 + 0.8 * STEPS)) * along / np.abs(along)
    return np.concatenate([line + half, (line - half)[::-1]])


class Pen:
    """Fills shapes given in face units; one pose shifts, scales, rolls and yaws them."""

    def __init__(self, size, rng):
        self.size = size
        self.yaw = rng.normal(0, 0.09)
        self.draw = None
        self.turn = rng.uniform(0.285, 0.335) * np.exp(1j * rng.normal(0, 0.07))
        self.centre = rng.normal(0.5, 0.02) + 1j * rng.normal(0.49, 0.02)

    def fill(self, points, colour):
        """Fill a polygon; yaw moves the middle of the face, which lies in front, sideways."""
        front = np.maximum(1 - points.real**2 - (points.imag / 1.4) ** 2, 0)
        points = ((points + self.yaw * front) * self.turn + self.centre) * self.size
        self.draw.polygon(points.view(float).tolist(), colour)


def draw_traits(age, male, rng):
    """Draw how one face looks: lengths by the apparent age, colours, hair, and its layers."""
    # The noise is the part of the error that no network can learn away.
    look = age + rng.normal() * np.interp(age, (0, 10, 30, 100), (0.4, 1.0, 3.0, 4.0))
    knots, *rows = map(str.split, SHAPE.strip().splitlines())
    knots = np.array(knots[1:], float)
    rows = {name: np.array(row, float) * rng.normal(1, 0.02) for name, *row in rows}
    f = SimpleNamespace(**{name: np.interp(look, knots, row) for name, row in rows.items()})
    f.look = look
    f.male = male
    f.adult = ramp(look, 11, 19)
    f.old = ramp(look, 30, 95)
    tone = rng.beta(1.2, 2.2) * (len(SKIN) - 1)
    skin = [np.interp(tone, range(len(SKIN)), channel) for channel in zip(*SKIN)]
    skin = mix(skin, [np.mean(skin) + 12] * 3, 0.3 * f.old)  # paler with age
    hair = mix((205, 170, 115), HAIR[rng.integers(len(HAIR))], ramp(look, -10, 14))
    grey = min(max(ramp(look, 32, 74) * rng.uniform(0.8, 1.2) + rng.normal(0, 0.05), 0), 1)
    grey *= male or look < 16 or rng.random() > 0.15  # the others dye their hair
    shadow = mix(skin, (70, 20, 10), 0.5)
    white = [rng.uniform(190, 225)] * 3
    lipstick = not male and look > 15 and rng.random() < 0.4
    red = (185, 35, 55) if lipstick else mix(skin, (170, 60, 60), 0.5 - 0.2 * f.old)
    f.colours = {"skin": skin, "shadow": shadow, "shade": mix(skin, shadow, 0.25), "lip": red}
    f.colours |= {"dark": mix(shadow, (20, 8, 8), 0.75), "blush": mix(skin, (235, 90, 90), 0.5)}
    f.colours |= {"white": mix((250, 250, 250), (220, 206, 190), f.old), "iris": rng.choice(IRIS)}
    f.colours |= {"brow": mix(mix(hair, (30, 22, 20), 0.4), (185, 185, 185), 0.7 * grey)}
    f.colours |= {"hair": mix(hair, white, grey), "clothes": rng.integers(20, 230, 3)}
    # Men lose hair at three speeds, so that age and forehead go together only on average.
    f.bald = male * ramp(look, 22, 72) * rng.choice((0.15, 0.5, 0.95)) * rng.uniform(0.8, 1.05)
    f.fringe = rng.uniform(0, 0.3) * (rng.random() < (0.25 if male else 0.5)) * (1 - f.bald)
    f.volume = rng.uniform(0.03, 0.14)
    f.curl = rng.uniform(0.01, 0.05) * (rng.random() < 0.35)
    f.tail = rng.uniform(0.6, 2.2)
    f.smile = rng.uniform(-0.1, 0.4)
    f.lined = rng.normal(1, 0.12)
    odds = {  # of the layers of PARTS that not every face has
        "long": (0.05 if male else 0.65) * (look > 2),
        "beard": 0.3 * male * (look > 19),
        "male": male * f.adult,
        "teeth": f.smile > 0.2,
        "glass": 0.1 + 0.2 * f.old,
    }
    f.layers = {name for name, chance in odds.items() if rng.random() < chance}
    return f


def draw_parts(pen, f, layers):
    """Draw those rows of PARTS that belong to `layers`."""
    parts = {  # the origin of a part and its units along x and y
        "back": ((f.tail - f.crown) * 0.5j, f.width + 0.24, (f.tail + f.crown) / 2 + 0.1),
        "body": ((f.chin + 1.1) * 1j, f.body, 0.8),
        "neck": ((f.chin + 0.2) * 1j, f.neck * (1 + 0.15 * f.male * f.adult), 1),
        "ear": (f.width + (f.eye_y + 0.18) * 1j, 0.13, f.ear),
        "eye": (0.41 + f.eye_y * 1j, f.eye_r, f.eye_r * f.lid),
        "frame": (0.41 + f.eye_y * 1j, 0.28, 0.25),
        "brow": ((f.eye_y - f.eye_r) * 1j, 1, 1),
        "nose": (f.nose_y * 1j, f.nose_r, f.nose_r),
        "side": (f.nose_y * 1j, 1, 1),
        "lips": (f.lips_y * 1j, f.lips_w, f.lips_h),
        "jaw": (f.chin * 1j, 1, 1),
    }
    for layer, part, colour, *numbers in map(str.split, PARTS.strip().splitlines()):
        if layer not in layers:
            continue
        first, last, low, high, *shape = map(float, numbers)
        opacity = first + (last - first) * ramp(f.look, low, high)
        opacity = min(opacity * (f.lined if layer == "line" else 1), 1)
        origin, dx, dy = parts[part]
        x, y = np.array(shape[:6:2]), np.array(shape[1:6:2])
        if len(shape) == 4:
            x, y = x[0] + x[1] * CIRCLE.real, y[0] + y[1] * CIRCLE.imag
        points = origin + dx * x + 1j * dy * y
        if part == "lips":
            points -= 1j * f.smile * dx * x**2
        if len(shape) == 7:
            points = curve(points, shape[6] * dx)
        # The mirror image of x + iy at x = 0 is minus its conjugate.
        symmetric = abs(points.real.min() + points.real.max()) < 1e-9
        for half in (points,) if symmetric else (points, -points.conj()):
            pen.fill(half, (*map(int, f.colours[colour]), int(255 * opacity)))


def draw_head(pen, f):
    """Draw the head without hair: oval in children, with a jaw in adults, jowls in the old."""
    low = np.maximum(CIRCLE.imag, 0)  # 0 above the eyes, 1 at the chin
    jaw = np.abs(CIRCLE.real) ** (1 - f.adult * low * (0.22 if f.male else 0.08))
    jaw = jaw * f.width * (1 - low**2 * f.adult * (0.12 if f.male else 0.2))
    x = np.sign(CIRCLE.real) * (jaw + f.cheek * np.exp(-(((low - 0.7) / 0.2) ** 2)))
    y = CIRCLE.imag * np.where(CIRCLE.imag < 0, f.crown, f.chin)
    pen.fill(x + 1j * y, f.colours["skin"])


def draw_hair(pen, f, rng):
    """Draw the hair on top: thin in babies, receding in men, with some strands."""
    grown = ramp(f.look, 0, 4)
    arc = np.exp(1j * np.linspace(np.pi - 0.05, 2 * np.pi + 0.05, 40))
    extra = f.volume * (1 + f.bald * np.minimum(arc.imag, 0)) * (0.3 + 0.7 * grown)  # thickness
    extra = extra + f.curl * np.sin(16 * np.angle(arc)) * (1 - f.bald)
    outer = (f.width + 0.04 + extra) * arc.real + 1j * (f.crown + extra) * arc.imag
    top = -f.crown * (0.70 - 0.1 * grown + 0.42 * f.bald) + f.fringe
    temple = -f.crown * (0.48 + 0.28 * f.bald) + 0.7 * f.fringe
    x = f.width * np.array([1.03, 0.94, 0.86, 0.64, 0.25])
    y = np.array([0.15, -0.05, -0.28 - 0.1 * f.bald, temple, (2 * top + temple) / 3])
    line = np.concatenate([x + 1j * y, [top * 1j], (-x + 1j * y)[::-1]])  # hairline, from the right
    alpha = int(255 * (0.3 + 0.7 * grown) * (1 - 0.2 * ramp(f.look, 70, 100)))
    pen.fill(np.concatenate([outer, line]), (*f.colours["hair"], alpha))
    for t in rng.uniform(0, 1, 14):
        start = 0.98 * outer[int(t * 39)]
        end = line[10 - int(t * 10)]
        bend = (start + end) / 2 + rng.normal(0, 0.04)
        tint = mix(f.colours["hair"], [rng.choice((0, 255))] * 3, 0.12)
        pen.fill(curve(np.array([start, bend, end]), 0.06), (*tint, alpha * 2 // 3))
