//! The style sheet of the page: wide and narrow, light and dark, on a screen and on paper.

/// Rules of CSS. The page loads nothing, so fonts are those of the system.
pub(super) const STYLE: &str = r#"
:root {
  --ground: #ffffff; --panel: #f4f5f7; --ink: #1c2126; --quiet: #59636e; --line: #d3d8de;
  --blue: #1f5f99; --amber: #8a5300; --red: #a32020; --grey: #59636e;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #14181c; --panel: #1e242a; --ink: #e6e9ec; --quiet: #a3adb7; --line: #3a434c;
    --blue: #82b8ea; --amber: #e6b35c; --red: #f19090; --grey: #a3adb7;
  }
  .chart img { filter: invert(0.9) hue-rotate(180deg); }
}
* { box-sizing: border-box; }
html { color-scheme: light dark; -webkit-text-size-adjust: 100%; }
body {
  margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 62rem;
  background: var(--ground); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
}
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 0.25rem; }
h2 { font-size: 1.25rem; line-height: 1.3; margin: 2.75rem 0 0.75rem; padding-top: 0.75rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; line-height: 1.35; margin: 0 0 0.35rem; }
p { margin: 0 0 0.75rem; max-width: 46rem; }
p, td, th, dd, dt, li, h1, h2, h3, figcaption { overflow-wrap: anywhere; }
ul { margin: 0 0 0.75rem; padding-left: 1.25rem; }
li { margin-bottom: 0.35rem; max-width: 46rem; }
.quiet { color: var(--quiet); font-size: 0.9rem; }
.box { background: var(--panel); border-left: 4px solid var(--line); padding: 0.9rem 1.1rem 0.4rem; margin: 0 0 1rem; }
.headline { font-size: 1.15rem; font-weight: 600; }
.test { border: 1px solid var(--line); border-radius: 6px; padding: 1rem 1.1rem 0.5rem; margin: 0 0 1.1rem; }
.verdict { font-weight: 600; white-space: nowrap; }
.verdict::before { content: ""; display: inline-block; width: 0.65em; height: 0.65em; margin-right: 0.45em; background: currentColor; }
.trace { color: var(--red); }
.overdone { color: var(--amber); }
.no-trace { color: var(--blue); }
.no-trace::before { border-radius: 50%; }
.undecided { color: var(--grey); }
.undecided::before { background: transparent; border: 2px solid currentColor; }
table { border-collapse: collapse; width: 100%; margin: 0 0 0.9rem; font-size: 0.94rem; }
th, td { text-align: left; vertical-align: top; padding: 0.45rem 0.75rem 0.45rem 0; border-bottom: 1px solid var(--line); }
thead th { color: var(--quiet); font-weight: 600; font-size: 0.85rem; }
tbody th { font-weight: 500; }
.number { font-variant-numeric: tabular-nums; font-weight: 600; }
.certainty { display: block; color: var(--quiet); font-size: 0.82rem; line-height: 1.35; }
code, pre, .hash { font: 0.85rem/1.45 ui-monospace, SFMono-Regular, Menlo, Consolas, "Noto Sans Mono", monospace; overflow-wrap: anywhere; }
pre { background: var(--panel); padding: 0.75rem 0.9rem; margin: 0 0 0.75rem; white-space: pre-wrap; }
dl { display: grid; grid-template-columns: minmax(9rem, 14rem) 1fr; gap: 0.35rem 1rem; margin: 0 0 0.9rem; }
dt { color: var(--quiet); }
dd { margin: 0; }
figure { margin: 0 0 1.25rem; }
figure img { max-width: 100%; height: auto; display: block; }
.picture img { image-rendering: pixelated; background: #fff; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: 1rem; }
figcaption { font-size: 0.9rem; color: var(--quiet); margin-top: 0.4rem; max-width: 46rem; }
@media (max-width: 40rem) {
  body { padding: 1.25rem 1rem 3rem; }
  .charts { grid-template-columns: 1fr; }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: 0.6rem; }
  thead { display: none; }
  table, tbody, tr, th, td { display: block; width: 100%; }
  tr { border-bottom: 1px solid var(--line); padding: 0.5rem 0; }
  th, td { border: 0; padding: 0.1rem 0; }
  td[data-label]::before { content: attr(data-label) ": "; color: var(--quiet); font-size: 0.85rem; }
  td:empty { display: none; }
}
@page { size: A4; margin: 16mm 15mm 18mm; }
@media print {
  :root {
    --ground: #ffffff; --panel: #f4f5f7; --ink: #000000; --quiet: #444c55; --line: #bfc5cc;
    --blue: #1f5f99; --amber: #8a5300; --red: #a32020; --grey: #59636e;
  }
  html { color-scheme: light; font-size: 9.5pt; }
  body { max-width: none; padding: 0; -webkit-print-color-adjust: exact; print-color-adjust: exact; }
  .chart img { filter: none; }
  h2 { margin-top: 1.6rem; }
  h2, h3, thead { break-after: avoid; }
  .box, .test, figure, tr { break-inside: avoid; }
  .test { padding: 0.6rem 0.8rem 0.2rem; }
  .charts { grid-template-columns: 1fr 1fr; }
  p, li { orphans: 3; widows: 3; }
}
"#;
