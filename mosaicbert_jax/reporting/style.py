"""The style sheet: light or dark, wide or narrow, on screen or on paper."""

# Ink, secondary ink, paper, panels, lines; then a color for each run.
_LIGHT = """--ink: #1b1f24; --quiet: #5b6470; --paper: #ffffff; --panel: #f5f6f8; --grid: #dfe3e8;
  --run-0: #1f6fb4; --run-1: #d1590a; --run-2: #1b8a5a; --run-3: #b0307f;
  --run-4: #7a5af0; --run-5: #8a6d00; --run-6: #008c9e; --run-7: #5d6670"""
_DARK = """--ink: #e6e9ed; --quiet: #9aa4b0; --paper: #14171b; --panel: #1d2126; --grid: #343a42;
  --run-0: #5aaaf0; --run-1: #ff9350; --run-2: #4cc98f; --run-3: #ef7fc0;
  --run-4: #a896ff; --run-5: #d8b840; --run-6: #3fc6d8; --run-7: #aab4bf"""

_COLORS = f"""
:root {{ color-scheme: light dark; {_LIGHT} }}
@media screen and (prefers-color-scheme: dark) {{ :root {{ {_DARK} }} }}
"""

STYLE = (
    _COLORS
    + """* { box-sizing: border-box }
body { margin: 0 auto; padding: 1.5rem; max-width: 76rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, "Segoe UI", "Liberation Sans", Arial, sans-serif }
h1 { margin: 0; font-size: 1.75rem; line-height: 1.2; overflow-wrap: anywhere }
h2 { margin: 2.25rem 0 .75rem; font-size: 1.2rem }
h3 { margin: 1.25rem 0 .5rem; font-size: 1rem; overflow-wrap: anywhere }
p { margin: .4rem 0; max-width: 60rem; overflow-wrap: anywhere }
.quiet, small, figcaption span { color: var(--quiet) }
small, figcaption span { font-size: .8125rem; font-weight: normal; line-height: 1.35 }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr));
  gap: .625rem; margin: 1rem 0 }
.tile { padding: .625rem .75rem; border-radius: .5rem; background: var(--panel) }
.tile b { display: block; font-size: 1.3rem; line-height: 1.3; font-variant-numeric: tabular-nums }
.tile small { display: block }
.bar { height: .5rem; margin: 1rem 0; border-radius: .25rem; background: var(--grid);
  overflow: hidden }
.bar div { height: 100%; background: var(--run-0) }
.state { display: inline-block; margin-left: .5rem; padding: .05rem .6rem; border-radius: 1rem;
  border: 1px solid var(--grid); font-size: .875rem; font-weight: normal; vertical-align: middle;
  white-space: nowrap }
.legend { position: sticky; top: 0; z-index: 1; display: flex; flex-wrap: wrap; gap: .25rem 1.25rem;
  margin: .5rem 0; padding: .4rem 0; background: var(--paper) }
.legend button { padding: .1rem .4rem; border: 0; border-radius: .3rem; background: none;
  color: inherit; font: inherit; text-align: left; cursor: pointer; overflow-wrap: anywhere }
.legend button:hover, .legend button[aria-pressed=true] { background: var(--grid) }
.faint { opacity: .08 }
.choices { display: flex; flex-wrap: wrap; gap: .25rem 2rem; margin-bottom: .75rem }
fieldset { margin: 0; padding: 0; border: 0 }
fieldset legend { float: left; margin-right: .6rem; color: var(--quiet) }
fieldset label { margin-right: .8rem }
.chosen svg:not(.tokens.linear), :root:has(#over-seconds:checked) .chosen svg.tokens,
:root:has(#scale-log:checked) .chosen svg.linear { display: none }
:root:has(#over-tokens:checked):has(#scale-log:checked) .chosen svg.tokens.log,
:root:has(#over-seconds:checked):has(#scale-linear:checked) .chosen svg.seconds.linear,
:root:has(#over-seconds:checked):has(#scale-log:checked) .chosen svg.seconds.log { display: block }
figure > div { position: relative }
.pointer { position: absolute; top: 0; bottom: 3rem; border-left: 1px solid var(--quiet);
  pointer-events: none }
.values { position: absolute; top: 1rem; z-index: 1; max-width: 70%; padding: .25rem .5rem;
  border: 1px solid var(--grid); border-radius: .3rem; background: var(--panel);
  font-size: .8125rem; pointer-events: none; overflow-wrap: anywhere }
.swatch { display: inline-block; width: 1.6rem; margin-right: .4rem; vertical-align: middle;
  border-top: 3px solid }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(27rem, 100%), 1fr));
  gap: 1.5rem 1.75rem }
figure { margin: 0; min-width: 0; break-inside: avoid }
figcaption { font-weight: 600 }
figcaption span { margin-left: .35rem }
svg { display: block; width: 100%; height: auto }
svg * { stroke-linejoin: round }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9375rem }
th, td { padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--grid); text-align: left;
  vertical-align: top; overflow-wrap: anywhere }
th { font-weight: 600; min-width: 6rem }
td small { display: block }
code, .config td { font: .8125rem/1.45 ui-monospace, "Liberation Mono", monospace }
.config td:first-child { white-space: nowrap }
table.setup td:first-child, i { color: var(--quiet); font-style: normal }
.setup { width: 100%; table-layout: fixed }
.setup tr > :first-child { width: 11rem; overflow-wrap: normal }
.setup code { display: inline-block; margin-right: 1rem }
summary { cursor: pointer; margin: .4rem 0; overflow-wrap: anywhere }
@media (max-width: 40rem) {
  body { padding: 1rem }
  .tiles { grid-template-columns: 1fr 1fr }
  .tile b { font-size: 1.1rem }
  .config td:first-child { white-space: normal; min-width: 9rem }
  .setup tr > :first-child { width: 6.5rem }
}
@media print {
  @page { margin: 14mm }
  body { padding: 0; max-width: none; font-size: 10.5pt }
  h2, h3 { break-after: avoid }
  .legend { position: static }
  .choices { display: none }
  .charts { grid-template-columns: 1fr 1fr }
  .tiles { grid-template-columns: repeat(4, 1fr) }
  .tile { border: 1px solid var(--grid); break-inside: avoid }
  tr { break-inside: avoid }
  .bar, .swatch { print-color-adjust: exact; -webkit-print-color-adjust: exact }
}
"""
)
