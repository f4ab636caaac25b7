"""The pieces of HTML that every section is made of."""

import base64
import io
from html import escape

import numpy as np
from PIL import Image


def figure(title: str, *content: str) -> str:
    """A figure with its title above; the content is HTML."""
    return f"<figure><figcaption>{escape(title)}</figcaption>{''.join(content)}</figure>"


def thumbnail(image: np.ndarray, text: str, alt: str) -> str:
    """An image [H, W, channels] with a text below."""
    buffer = io.BytesIO()
    Image.fromarray(image if image.shape[-1] == 3 else image[..., 0]).save(buffer, "png")
    # Small images keep their pixels; large ones are scaled down as photographs are.
    kind = ' class="pixels"' if max(image.shape) < 100 else ""
    image = f'<img{kind} src="{uri(buffer.getvalue())}" alt="{escape(alt, quote=True)}">'
    return f"<span>{image}{escape(text)}</span>"


def uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def grid(content: list[str], kind: str = "") -> str:
    """Figures side by side, as many as there is room for."""
    return f'<div class="grid {kind}">{"".join(content)}</div>' if content else ""


def table(head: list[str], rows: list[list[str]], numbers_from: int) -> str:
    """A table that scrolls where it is too wide; cells are HTML, numbers stand to the right."""

    def line(cells, tag):
        return "".join(
            f"<{tag}{' class=number' if i >= numbers_from else ''}>{cell}</{tag}>"
            for i, cell in enumerate(cells)
        )

    body = "".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    return (
        f'<div class="table" tabindex="0"><table><thead><tr>{line(head, "th")}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )
