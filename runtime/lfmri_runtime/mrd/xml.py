"""The XML of a session and of its images: read with bounds and without entities, written by the standard library."""

from collections.abc import Iterator, Mapping
from xml.etree import ElementTree

#: More tags than this are no header; an element costs some hundred bytes of memory.
MOST_TAGS = 50_000


def parse(text: str) -> ElementTree.Element | None:
    """The root element; None for what is not XML, has a document type (entities) or far too many tags."""
    if text.count("<") > MOST_TAGS or "<!DOCTYPE" in text:
        return None
    try:
        return ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError, LookupError):  # the last two: an encoding that is none
        return None


def named_values(root: ElementTree.Element, tags: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Each element of these tags with its <name> and its first <value>; namespaces do not matter."""
    for element in root.iter():
        if isinstance(element.tag, str) and element.tag.rpartition("}")[2] in tags:
            name, value = element.findtext("{*}name"), element.findtext("{*}value")
            if name is not None and value is not None:
                yield name.strip(), value.strip()


def meta_values(attributes: bytes, name: str) -> list[str]:
    """All values of one attribute of an image; empty where it is not there or the attributes are not XML."""
    root = parse(attributes.rstrip(b"\0").decode(errors="replace"))
    metas = [] if root is None else [meta for meta in root if meta.findtext("name") == name]
    return [value.text or "" for meta in metas for value in meta.iterfind("value")]


def with_meta(attributes: bytes, values: Mapping[str, tuple[str, ...]]) -> bytes:
    """An image's attributes with some set anew and all others kept.

    Args:
        attributes: XML of root ismrmrdMeta; anything else counts as empty.
        values: what to set, each with one value or several.
    """
    root = parse(attributes.rstrip(b"\0").decode(errors="replace"))
    if root is None or root.tag != "ismrmrdMeta":
        root = ElementTree.Element("ismrmrdMeta")
    for meta in [meta for meta in root if meta.findtext("name") in values]:
        root.remove(meta)
    for name, texts in values.items():
        meta = ElementTree.SubElement(root, "meta")
        ElementTree.SubElement(meta, "name").text = name
        for text in texts:
            ElementTree.SubElement(meta, "value").text = text
    content: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return content
