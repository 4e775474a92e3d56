"""PromptCraft rules: what may be drawn together, what is added to it, and which LoRAs it calls for.

`reading` turns rule files into the records of `records`; `ruleset` compiles them against one snapshot; `plan` draws
an expansion stage by stage with `search`; `effects` and `links` add what the rules ask for.
"""

from __future__ import annotations
