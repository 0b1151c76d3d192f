"""The tables of docs/backbones.md, counted from published configs: `python scripts/backbone_costs.py`."""

from vlm_occ.language.costs import tables

if __name__ == "__main__":
    print(tables())
