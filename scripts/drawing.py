# SPDX-License-Identifier: Apache-2.0
"""SVG pictures and plots, for the scripts that draw those of docs/. Only Python's standard library."""

import math
from html import escape


def number(value):
    """A coordinate in pixels, to a tenth."""
    return f"{value:.1f}".removesuffix(".0")


class Picture:
    """An SVG picture: boxes, lines, curves, dots and text, in pixels."""

    def __init__(self, width, height, title):
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}" role="img" font-family="sans-serif">',
            f"<title>{escape(title)}</title>",
            '<rect width="100%" height="100%" fill="#ffffff"/>']

    def add(self, tag, text=None, **attributes):
        """Adds an element. Attributes that are None are left out; of names, _ is -."""
        words = [f'{name.replace("_", "-")}="{value if isinstance(value, str) else number(value)}"'
                 for name, value in attributes.items() if value is not None]
        end = "/>" if text is None else f">{escape(text, quote=False)}</{tag}>"
        self.parts.append(f"<{tag} {' '.join(words)}{end}")

    def box(self, x, y, width, height, fill, stroke=None):
        self.add("rect", x=x, y=y, width=width, height=height, fill=fill, stroke=stroke)

    def line(self, x1, y1, x2, y2, color, dash=None):
        self.add("line", x1=x1, y1=y1, x2=x2, y2=y2, stroke=color, stroke_dasharray=dash)

    def curve(self, points, color):
        path = " ".join(f"{number(x)},{number(y)}" for x, y in points)
        self.add("polyline", points=path, fill="none", stroke=color, stroke_width=2)

    def dot(self, x, y, radius, fill):
        self.add("circle", cx=x, cy=y, r=radius, fill=fill)

    def text(self, x, y, text, anchor=None, size=12, fill=None, weight=None):
        """`anchor`: None is the start of the text, else "middle" or "end"."""
        self.add("text", text, x=x, y=y, text_anchor=anchor, font_size=size, font_weight=weight,
                 fill=fill)

    def slanted_text(self, x, y, text, size):
        self.add("text", text, transform=f"translate({number(x)},{number(y)}) rotate(25)",
                 font_size=size)

    def svg(self):
        return "\n".join([*self.parts, "</svg>"]) + "\n"


def ticks(top):
    """Round numbers from 0 to at least `top`, five or so."""
    step = 10 ** math.floor(math.log10(top / 4)) if top > 0 else 1
    step = next(step * k for k in (1, 2, 2.5, 5, 10) if step * k * 5 >= top)
    return [step * i for i in range(math.ceil(top / step) + 1)]


class Plot(Picture):
    """A frame with a title, two axes and a legend, and what is drawn into it in the axes' values.

    The x axis runs from 0 to at least `x_top`, and so does the y axis to `y_top`. With `y_powers`, a
    range of integers, the y axis is logarithmic and runs from 10 to the first of these to 10 to the
    last."""

    WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 420, 76, 590, 46, 364

    def __init__(self, title, x_label, y_label, x_top, y_top=1, y_powers=None):
        super().__init__(self.WIDTH, self.HEIGHT, title)
        self.y_powers = y_powers
        self.x_ticks = ticks(x_top)
        self.y_ticks = [10.0 ** power for power in y_powers] if y_powers else ticks(y_top)
        self.legend = []  # of (name, color)
        self.text(self.LEFT, 24, title, size=15, weight="bold")
        self.text((self.LEFT + self.RIGHT) / 2, self.HEIGHT - 12, x_label, "middle")
        self.text(self.LEFT, 40, y_label)
        for value in self.y_ticks:
            y = self.y(value)
            self.line(self.LEFT, y, self.RIGHT, y, "#dddddd")
            self.text(self.LEFT - 8, y + 4, f"{value:g}" if y_powers else f"{value:,.10g}", "end")

    def x(self, value):
        return self.LEFT + value / self.x_ticks[-1] * (self.RIGHT - self.LEFT)

    def y(self, value):
        share = value / self.y_ticks[-1]
        if self.y_powers:
            low, high = self.y_powers[0], self.y_powers[-1]
            share = (math.log10(value) - low) / max(1, high - low)
        return self.BOTTOM - share * (self.BOTTOM - self.TOP)

    def number_axis(self):
        for value in self.x_ticks:
            self.text(self.x(value), self.BOTTOM + 18, f"{value:,.10g}", "middle")

    def series(self, name, points, color):
        """A curve through the points, with the y value at each."""
        points = sorted(points)
        at = [(self.x(x), self.y(y)) for x, y in points]
        self.curve(at, color)
        for (x, y), (_, value) in zip(at, points):
            self.dot(x, y, 4, color)
            self.text(x, y - 9, f"{value:,.0f}" if value >= 100 else f"{value:.3g}", "middle", 11)
        self.legend.append((name, color))

    def bar(self, x, width, bottom, top, fill):
        """`x` and `width` in pixels."""
        self.box(x, self.y(top), width, self.y(bottom) - self.y(top), fill)

    def svg(self):
        for i, (name, fill) in enumerate(self.legend):
            y = self.TOP + 18 * i
            self.box(self.RIGHT + 12, y, 12, 12, fill)
            self.text(self.RIGHT + 30, y + 10, name)
        return super().svg()
