"""docs/providers.md lists every vendor as the table in providers/vendors.py has it."""

from __future__ import annotations

from pathlib import Path

from fastllm.providers.vendors import BUILT_IN, VENDORS, Vendor

PAGE = Path(__file__).parents[2] / "docs" / "providers.md"
SCHEMAS = {"json_object": "schemas are told in words", "none": "schemas are told in words"}


def row_of(vendor: Vendor) -> str:
    """One line of the page's table."""
    key = " or ".join(f"`{name}`" for name in vendor.key_env) + ("" if vendor.key_required else ", if any")
    address = f"`{vendor.base_url}`" + (f", or `{vendor.base_url_env}`" if vendor.base_url_env else "")
    notes = [f"key in `{vendor.key_header}`"] if vendor.key_header else []
    renamed = [f"`{ours}` is sent as `{theirs}`" for ours, theirs in vendor.params.items()]
    notes += [", ".join(renamed)] if renamed else []
    notes += [f"its headers count {means.replace('/', ' a ')}" for means in vendor.limit_names.values() if "/" in means]
    notes += [SCHEMAS[vendor.schemas]] if vendor.schemas in SCHEMAS else []
    notes += [] if vendor.responses else ["Responses by its chat"]
    if vendor.embed_inputs:
        tokens = f" and {vendor.embed_tokens:,} tokens" if vendor.embed_tokens else ""
        notes.append(f"embeds {vendor.embed_inputs:,} inputs{tokens} a request")
    cells = (f"`{vendor.name}`", vendor.dialect, key, address, "; ".join(notes))
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def test_the_page_lists_every_vendor_as_the_table_has_it() -> None:
    lines = PAGE.read_text().splitlines()
    begin = lines.index("| name | dialect | key | address | otherwise |") + 2
    shown = lines[begin : lines.index("", begin)]
    assert shown == [row_of(VENDORS[name]) for name in sorted(BUILT_IN)]
