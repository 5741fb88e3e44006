"""The style sheet and the few lines of script of every page; no fonts, images or addresses from elsewhere."""

from __future__ import annotations

CSS = """
:root { color-scheme: light dark; --ground: #fbfbfa; --card: #ffffff; --ink: #1d2530; --soft: #5b6675; --line: #e4e6ea;
  --accent: #2f6f9f; --good: #1c7c54; --good-bg: #e3f3ea; --bad: #b0364a; --bad-bg: #fbe7ea; --even: #5b6675;
  --even-bg: #eceff3; --shadow: 0 1px 2px rgba(20, 30, 45, .05), 0 4px 16px rgba(20, 30, 45, .04); }
@media (prefers-color-scheme: dark) { :root { --ground: #12151a; --card: #1a1f26; --ink: #e7ebf0; --soft: #9aa6b5;
  --line: #2b323c; --accent: #7db8e0; --good: #6fcf9f; --good-bg: #173528; --bad: #f08a9b; --bad-bg: #3d1c23;
  --even: #a9b4c2; --even-bg: #29303a; --shadow: none; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1040px; margin: 0 auto; padding: 48px 24px 72px; }
h1, h2, h3 { line-height: 1.25; letter-spacing: -.012em; text-wrap: balance; overflow-wrap: anywhere; }
h1 { font-size: clamp(1.7rem, 1.2rem + 2.2vw, 2.4rem); margin: 0 0 8px; font-weight: 680; }
h2 { font-size: 1.35rem; margin: 56px 0 12px; font-weight: 650; scroll-margin-top: 16px; }
h3 { font-size: 1.05rem; margin: 32px 0 8px; font-weight: 650; }
p { margin: 0 0 16px; max-width: 70ch; overflow-wrap: anywhere; }
.lede { color: var(--soft); font-size: 1.08rem; margin-bottom: 20px; }
.muted, .limits, figcaption, caption, .note { color: var(--soft); }
code, pre { font: .88em/1.55 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
code { background: var(--even-bg); border-radius: 4px; padding: .1em .35em; overflow-wrap: anywhere; }
nav { display: flex; gap: 8px; margin: 8px 0 0; padding-bottom: 4px; overflow-x: auto; scrollbar-width: thin; }
nav a { flex: none; color: var(--soft); text-decoration: none; font-size: .88rem; border: 1px solid var(--line);
  border-radius: 999px; padding: 3px 12px; background: var(--card); }
nav a:hover, nav a:focus-visible { color: var(--accent); border-color: var(--accent); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(210px, 1fr)); gap: 14px; margin: 20px 0 24px; }
.card, figure.plot, .tablebox, details, .example { background: var(--card); border: 1px solid var(--line);
  border-radius: 12px; box-shadow: var(--shadow); }
.card { padding: 16px 18px 14px; display: flex; flex-direction: column; gap: 2px; min-width: 0; }
.card .label { color: var(--soft); font-size: .9rem; overflow-wrap: anywhere; }
.card .value { font-size: 1.75rem; font-weight: 660; letter-spacing: -.02em; line-height: 1.3;
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.card .limits, .card .note { font-size: .86rem; font-variant-numeric: tabular-nums; }
.card .badge { align-self: flex-start; margin-top: 8px; }
.badge { display: inline-block; border-radius: 999px; padding: 1px 10px; font-size: .82rem; font-weight: 600;
  white-space: nowrap; }
.badge.good { color: var(--good); background: var(--good-bg); }
.badge.bad { color: var(--bad); background: var(--bad-bg); }
.badge.even { color: var(--even); background: var(--even-bg); }
figure.plot { margin: 20px 0 24px; padding: 16px 14px 12px; min-width: 0; }
figure.plot .canvas { width: 100%; overflow: hidden; }
figure.plot .canvas text { fill: var(--ink) !important; }
figure.plot .canvas .errorbars path, figure.plot .canvas path.yerror, figure.plot .canvas path.xerror {
  stroke: var(--ink) !important; stroke-opacity: .62; }
figure.plot .canvas .hoverlayer text { fill: revert-layer !important; }
figcaption { font-size: .9rem; padding: 8px 4px 0; max-width: 75ch; }
.tablebox { overflow-x: auto; margin: 20px 0 24px; background:
  linear-gradient(90deg, var(--card) 30%, transparent) left / 36px 100% no-repeat local,
  linear-gradient(270deg, var(--card) 30%, transparent) right / 36px 100% no-repeat local,
  linear-gradient(90deg, var(--line), transparent) left / 12px 100% no-repeat scroll,
  linear-gradient(270deg, var(--line), transparent) right / 12px 100% no-repeat scroll, var(--card); }
table { border-collapse: collapse; width: 100%; font-size: .94rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding: 14px 18px 4px; font-size: .9rem; }
th, td { text-align: left; padding: 10px 18px; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 600; font-size: .84rem; white-space: nowrap; }
tbody tr:last-child td { border-bottom: 0; }
td.num, th.num { text-align: right; white-space: nowrap; }
td.short, .card .limits span { white-space: nowrap; }
.example { margin: 16px 0; overflow: hidden; }
.example h3 { margin: 0; padding: 14px 18px; border-bottom: 1px solid var(--line); font-size: 1rem; }
.columns { display: flex; flex-wrap: wrap; gap: 1px; background: var(--line); }
.column { background: var(--card); padding: 14px 18px 16px; min-width: 0; flex: 1 1 230px; }
.column .label { color: var(--soft); font-size: .78rem; font-weight: 600; letter-spacing: .05em;
  text-transform: uppercase;
  margin-bottom: 6px; }
.column .body { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .95rem; }
details { margin: 12px 0; }
summary { cursor: pointer; padding: 12px 18px; font-weight: 600; overflow-wrap: anywhere; }
summary:focus-visible, nav a:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px;
  border-radius: 10px; }
details[open] > summary { border-bottom: 1px solid var(--line); }
details > .inside { padding: 14px 18px 16px; }
details pre { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
details .inside > :last-child { margin-bottom: 0; }
footer { margin-top: 64px; padding-top: 18px; border-top: 1px solid var(--line); color: var(--soft);
  font-size: .88rem; }
@media (max-width: 560px) {
  main { padding: 28px 16px 48px; }
  h2 { margin-top: 44px; }
  .cards { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 10px; }
  .cards.one { grid-template-columns: 1fr; }
  .card { padding: 12px 14px; }
  .card .value { font-size: 1.4rem; }
  figure.plot { padding: 10px 6px 10px; }
  figcaption { padding: 8px 8px 0; }
  th, td { padding: 8px 12px; }
  .column { flex-basis: 100%; }
  nav { margin-right: -16px; padding-right: 16px; }
}
@media print { nav { display: none; } .card, figure.plot, .example, tr { break-inside: avoid; } }
"""

SCRIPT = """
(() => {
  const draw = (box) => {
    if (box.dataset.drawn) return;
    box.dataset.drawn = "1";
    const spec = JSON.parse(document.getElementById(box.dataset.spec).textContent);
    Plotly.newPlot(box, spec.data, spec.layout, {responsive: true, displayModeBar: false, displaylogo: false,
      plotlyServerURL: ""});
  };
  const boxes = [...document.querySelectorAll(".canvas")];
  const all = () => boxes.forEach(draw);
  if (!("IntersectionObserver" in window)) { all(); return; }
  // Drawn when near the view: a long report opens at once, and a figure in a closed section is drawn at its true width.
  const watch = new IntersectionObserver((entries) => entries.forEach((entry) => {
    if (entry.isIntersecting) { draw(entry.target); watch.unobserve(entry.target); }
  }), {rootMargin: "600px"});
  boxes.forEach((box) => watch.observe(box));
  window.addEventListener("beforeprint", all);
})();
"""
