"""The one visual design of the app: colours, type and spacing, for plain pages and for Gradio's components alike.

Colours are CSS variables that follow the reader's system between light and dark; Gradio's theme names only variables,
so that there is one place to change. They are those of the lab's reports (`alignlab.viz.style`). Type is what the
system has: no font, image or script comes from elsewhere.
"""

from __future__ import annotations

from typing import Any

LIGHT = {
    "ground": "#fbfbfa", "card": "#ffffff", "ink": "#1d2530", "soft": "#5b6675", "line": "#e4e6ea",
    "accent": "#2f6f9f", "accent-ink": "#ffffff", "good": "#1c7c54", "good-bg": "#e3f3ea", "bad": "#b0364a",
    "bad-bg": "#fbe7ea", "even": "#5b6675", "even-bg": "#eceff3", "edge": "#8a94a1",
}  # fmt: skip
DARK = {
    "ground": "#12151a", "card": "#1a1f26", "ink": "#e7ebf0", "soft": "#9aa6b5", "line": "#2b323c",
    "accent": "#7db8e0", "accent-ink": "#10151b", "good": "#6fcf9f", "good-bg": "#173528", "bad": "#f08a9b",
    "bad-bg": "#3d1c23", "even": "#a9b4c2", "even-bg": "#29303a", "edge": "#6b7787",
}  # fmt: skip
FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")

_RULES = """
.lab { color: var(--ink); font: 16px/1.6 var(--lab-font); font-variant-numeric: tabular-nums; }
.lab * { box-sizing: border-box; }
body.lab { margin: 0; background: var(--ground); }
body.lab > .page { max-width: 1152px; margin: 0 auto; padding: 8px 24px 72px; }
.lab h1 { font-size: clamp(1.5rem, 1.2rem + 1.6vw, 2rem); font-weight: 680; letter-spacing: -.012em; line-height: 1.25;
  margin: 20px 0 6px; color: var(--ink); }
.lab h2 { font-size: 1.15rem; font-weight: 650; margin: 36px 0 10px; color: var(--ink); }
.lab p { margin: 0 0 14px; max-width: 70ch; overflow-wrap: anywhere; color: inherit; }
.lab .lede, .lab .soft { color: var(--soft); }
.lab a { color: var(--accent); text-underline-offset: 3px; }
.lab :focus-visible, .gradio-container :focus-visible { outline: 2px solid var(--accent); outline-offset: 2px;
  border-radius: 6px; }
.lab code, .lab pre { font: .9em/1.5 var(--lab-mono); }
.lab code { background: var(--even-bg); color: var(--ink); border-radius: 4px; padding: .1em .35em;
  overflow-wrap: anywhere; }
.lab pre { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; color: var(--ink); background: none; }
.lab header.bar { display: flex; flex-wrap: wrap; gap: 6px 20px; align-items: center; padding: 6px 0 12px;
  border-bottom: 1px solid var(--line); }
.lab .bar .brand { font-weight: 700; color: var(--ink); text-decoration: none; }
.lab .bar nav { display: flex; flex-wrap: wrap; gap: 6px; }
.lab .bar nav a { color: var(--ink); text-decoration: none; font-size: .95rem; padding: 5px 14px; border-radius: 999px;
  border: 1px solid transparent; min-height: 34px; }
.lab .bar nav a:hover { border-color: var(--line); background: var(--card); }
.lab .bar nav a[aria-current] { background: var(--accent); color: var(--accent-ink); }
.lab .skip { position: absolute; left: -9999px; } .lab .skip:focus { left: 12px; top: 8px; background: var(--card);
  padding: 6px 12px; z-index: 9; }
.lab .cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); gap: 12px; margin: 16px 0; }
.lab .card, .lab .box { background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  padding: 14px 18px; min-width: 0; }
.lab .card .label { color: var(--soft); font-size: .9rem; } .lab .card .value { font-size: 1.6rem; font-weight: 660; }
.lab .card .note { color: var(--soft); font-size: .86rem; overflow-wrap: anywhere; }
.lab .box { margin: 12px 0; } .lab .box > :last-child { margin-bottom: 0; }
.lab .box.notice { border-left: 4px solid var(--bad); } .lab .box.next { border-left: 4px solid var(--accent); }
.lab .badge { display: inline-block; border-radius: 999px; padding: 0 10px; font-size: .84rem; font-weight: 600;
  white-space: nowrap; color: var(--even); background: var(--even-bg); }
.lab .badge.good { color: var(--good); background: var(--good-bg); }
.lab .badge.bad { color: var(--bad); background: var(--bad-bg); }
.lab .tablebox { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  margin: 12px 0; }
.lab table { border-collapse: collapse; width: 100%; font-size: .94rem; margin: 0; }
.lab caption { text-align: left; padding: 10px 16px 2px; color: var(--soft); font-size: .9rem; }
.lab th, .lab td { text-align: left; padding: 8px 16px; border: 0; border-bottom: 1px solid var(--line);
  vertical-align: top; color: var(--ink); }
.lab thead th { color: var(--soft); font-weight: 600; font-size: .84rem; white-space: nowrap; }
.lab tbody th { font-weight: 600; min-width: 16ch; } .lab tbody tr:last-child > * { border-bottom: 0; }
.lab .num { text-align: right; white-space: nowrap; } .lab .limits { color: var(--soft); }
.lab td:not(.wide) { white-space: nowrap; } .lab .wide { min-width: 18ch; overflow-wrap: anywhere; }
.lab .verbatim { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; font: inherit; }
.lab .box > .said:first-child { margin-top: 0; }
.lab .said { color: var(--soft); font-size: .84rem; font-weight: 600; margin: 12px 0 2px; }
.lab .changed { background: var(--even-bg); }
.lab h3 { font-size: 1rem; font-weight: 650; margin: 20px 0 6px; color: var(--ink); }
.lab button { font: inherit; color: var(--ink); background: var(--card); border: 1px solid var(--edge);
  border-radius: 8px; padding: 6px 14px; min-height: 40px; cursor: pointer; }
.lab button:hover { background: var(--even-bg); } .lab button:disabled { opacity: .5; cursor: default; }
.lab button.main { color: var(--accent-ink); background: var(--accent); border-color: var(--accent); }
.lab button[aria-pressed=true] { outline: 3px solid var(--accent); outline-offset: 2px; }
.lab kbd { font: .84em/1 var(--lab-mono); border: 1px solid currentColor; border-radius: 4px; padding: 1px 5px;
  margin-right: 8px; background: none; color: inherit; box-shadow: none; }
.lab input:not([type=checkbox], [type=radio]), .lab select, .lab textarea { font: inherit; color: var(--ink);
  background: var(--card); border: 1px solid var(--edge); border-radius: 8px; padding: 7px 10px; min-height: 40px;
  width: 100%; min-width: 0; }
.lab select { appearance: auto; }
.lab input[type=checkbox], .lab input[type=radio] { appearance: auto; accent-color: var(--accent);
  width: 18px; height: 18px; vertical-align: -3px; margin: 0 4px 0 0; }
.lab .fields { display: flex; flex-wrap: wrap; gap: 12px 16px; align-items: end; margin: 8px 0 14px; }
.lab .fields label { flex: 1 1 200px; min-width: 0; } .lab .fields label.wide, .lab .fields .tick { flex-basis: 100%; }
.lab label > span { display: block; color: var(--soft); font-size: .88rem; margin-bottom: 3px; }
.lab summary { cursor: pointer; font-weight: 600; color: var(--ink); }
.lab .answers { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr)); gap: 12px;
  margin: 12px 0; }
.lab .answer { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 12px 18px 16px;
  min-width: 0; display: flex; flex-direction: column; }
.lab .answer h3 { margin: 0 0 6px; color: var(--soft); font-size: .9rem; }
.lab .clip { display: block; width: 100%; max-width: 440px; margin: 0 auto; fill: none; stroke-linecap: round; }
.lab .clip .track { stroke: var(--edge); stroke-width: 1.5; } .lab .clip .end { stroke: var(--bad); stroke-width: 2.5; }
.lab .clip .body { fill: var(--ink); } .lab .clip .pole { stroke: var(--accent); stroke-width: 6; }
.lab .clip .torque { stroke: var(--soft); stroke-width: 4; } .lab .clip .far { fill: var(--accent); }
.lab .clip .began { opacity: .18; }
.lab .answer.current { border-color: var(--accent); box-shadow: 0 0 0 1px var(--accent); }
.lab .control { margin: auto 0 0; padding: 12px 0 0; border: 0; } .lab .grades label { margin-right: 14px; }
.lab .control select { width: auto; } .lab .grades { padding-top: 0; }
.lab .grades legend { color: var(--soft); font-size: .88rem; padding: 12px 0 2px; }
.lab .actions { position: sticky; bottom: 0; display: flex; flex-wrap: wrap; gap: 8px; padding: 10px 0;
  background: var(--ground); z-index: 2; }
.lab .question { margin: 16px 0 0; } .lab .question:focus { outline: none; }
.lab .far { display: flex; flex-wrap: wrap; gap: 4px 14px; align-items: center; } .lab .far > span { margin: 0; }
.lab progress { flex: 1 1 200px; height: 8px; appearance: none; border: 0; border-radius: 4px; overflow: hidden;
  background: var(--even-bg); }
.lab progress::-webkit-progress-bar { background: var(--even-bg); }
.lab progress::-webkit-progress-value { background: var(--accent); }
.lab progress::-moz-progress-bar { background: var(--accent); }
.lab .status { min-height: 1.6em; color: var(--good); margin: 0; }
.lab .told p { margin: 0 0 4px; }
@media (pointer: coarse) { .lab .actions kbd, .lab .hint, .lab .keys { display: none; } }
@media (max-width: 560px) { body.lab > .page { padding: 8px 12px 48px; }
  .lab .cards { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 8px; } .lab .card { padding: 10px 12px; }
  .lab .card .value { font-size: 1.3rem; } .lab th, .lab td { padding: 8px 10px; } }
@media (prefers-reduced-motion: reduce) { * { animation: none !important; transition: none !important; } }
"""

_GRADIO_RULES = """
.gradio-container { width: 100%; max-width: min(1168px, 100vw) !important; margin: 0 auto !important;
  overflow: clip visible !important; }
.gradio-container .column, .gradio-container .html-container, .gradio-container .block.lab {
  min-width: 0 !important; max-width: 100%; }
.gradio-container .form { flex-wrap: wrap; }
.gradio-container .form > .block { min-width: min(210px, 100%) !important; }
.gradio-container .block.lab, .gradio-container .lab .html-container { padding: 0 !important; border: 0 !important;
  overflow: clip visible !important; }
.gradio-container .lab h1 { margin-top: 0; } .gradio-container .lab h2 { margin: 16px 0 0; }
.gradio-container .nav-holder, .gradio-container footer { display: none !important; }
.gradio-container .main.fillable { padding-top: 8px; max-width: none !important; }
.gradio-container .lab { padding: 0; }
.gradio-container .js-plotly-plot text { fill: var(--ink) !important; }
.gradio-container .js-plotly-plot .hoverlayer text { fill: revert-layer !important; }
.gradio-container .samples .wrap { flex-direction: column; gap: 6px; align-items: stretch; }
.gradio-container .samples label { width: 100%; }
.gradio-container .samples label span { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.gradio-container .talks { height: clamp(220px, 38vh, 460px); overflow-y: auto; display: flex !important;
  flex-direction: column-reverse; background: var(--card) !important; border: 1px solid var(--line) !important;
  border-radius: 12px; padding: 6px 18px 14px !important; }
.gradio-container .talks > * { margin-bottom: auto; } .gradio-container .standing p { margin: 0; }
.gradio-container .talks .asked { background: var(--even-bg); border-radius: 10px; padding: 6px 12px; }
.gradio-container .talks .badword { color: var(--bad); }
.gradio-container .talks progress { width: 100%; height: 6px; accent-color: var(--accent); }
.gradio-container input[type=radio], .gradio-container input[type=checkbox] { border-color: var(--edge); }
@media (max-width: 560px) { .gradio-container .column.side { min-width: 100% !important; }
  .gradio-container .main.fillable { padding-left: 12px; padding-right: 12px; } }
"""


def _variables(colours: dict[str, str]) -> str:
    return " ".join(f"--{name}: {value};" for name, value in colours.items())


def _stack(fonts: tuple[str, ...]) -> str:
    return ", ".join(f'"{font}"' if " " in font else font for font in fonts)


def style_sheet() -> str:
    """The CSS of every page."""
    root = f"color-scheme: light dark; --lab-font: {_stack(FONTS)}; --lab-mono: {_stack(MONO)};"
    return (
        f":root {{ {root} {_variables(LIGHT)} }}\n"
        f"@media (prefers-color-scheme: dark) {{ :root {{ {_variables(DARK)} }} }}\n"
        f"{_RULES}{_GRADIO_RULES}"
    )


def gradio_theme() -> Any:
    """Gradio's theme in these colours; light and dark name the same variables, which the style sheet switches."""
    import gradio as gr

    own = {
        "body_background_fill": "ground", "background_fill_primary": "card", "background_fill_secondary": "ground",
        "body_text_color": "ink", "body_text_color_subdued": "soft", "border_color_primary": "line",
        "border_color_accent": "accent", "color_accent_soft": "even-bg", "link_text_color": "accent",
        "link_text_color_hover": "accent", "link_text_color_active": "accent", "link_text_color_visited": "accent",
        "block_background_fill": "card", "block_border_color": "line", "block_info_text_color": "soft",
        "block_label_background_fill": "card", "block_label_text_color": "ink", "block_title_text_color": "ink",
        "panel_background_fill": "ground", "input_background_fill": "card", "input_border_color": "edge",
        "input_border_color_focus": "accent", "input_placeholder_color": "soft", "table_border_color": "line",
        "checkbox_background_color": "card", "checkbox_background_color_selected": "accent",
        "checkbox_border_color": "edge", "checkbox_border_color_selected": "accent",
        "checkbox_label_background_fill": "card", "checkbox_label_background_fill_hover": "even-bg",
        "checkbox_label_background_fill_selected": "even-bg", "checkbox_label_border_color": "line",
        "checkbox_label_text_color": "ink", "checkbox_label_text_color_selected": "ink",
        "button_primary_background_fill": "accent", "button_primary_background_fill_hover": "accent",
        "button_primary_text_color": "accent-ink", "button_primary_text_color_hover": "accent-ink",
        "button_secondary_background_fill": "card", "button_secondary_background_fill_hover": "even-bg",
        "button_secondary_border_color": "edge", "button_secondary_text_color": "ink",
        "button_secondary_text_color_hover": "ink", "loader_color": "accent", "slider_color": "accent",
        "error_background_fill": "bad-bg", "error_border_color": "bad", "error_text_color": "bad",
        "code_background_fill": "even-bg", "accordion_text_color": "ink", "table_text_color": "ink",
    }  # fmt: skip
    theme: Any = gr.themes.Base(radius_size="lg", font=list(FONTS), font_mono=list(MONO))
    accepted = theme.set.__code__.co_varnames  # not every variable has a form of its own for dark
    values = {name: f"var(--{variable})" for name, variable in own.items()}
    values |= {f"{name}_dark": value for name, value in values.items() if f"{name}_dark" in accepted}
    return theme.set(**values, input_border_width="1px")
