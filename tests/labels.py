"""Label dictionaries of tests."""


def segment(value: int, label: str, code: str, *keys: str, category: str = "123037004") -> str:
    """The TOML of a segment, whose type and category are codes of SNOMED CT that are known; `keys` are lines of others."""
    codes = (f'category = ["SCT", "{category}"]', f'type = ["SCT", "{code}"]')
    return "\n".join(("[[segment]]", f"value = {value}", f'label = "{label}"', *codes, *keys, ""))
