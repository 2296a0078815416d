"""The page's style sheet: light or dark as the reader's system is."""

from __future__ import annotations

STYLE = """
:root{color-scheme:light dark;--fg:#1c1c1e;--soft:#5b5b62;--line:#d5d5da;--bg:#fff;--card:#f6f6f8;
--train:#8a8a92;--dev:#0b62c4;--count:#b9b9c2;--for:200 90 0;--against:0 95 200;--cell:0 95 200}
@media(prefers-color-scheme:dark){:root{--fg:#ececf0;--soft:#a5a5af;--line:#3c3c44;--bg:#17171a;
--card:#212126;--train:#9a9aa4;--dev:#6db3ff;--count:#5a5a66;--for:255 150 50;--against:90 165 255;
--cell:90 165 255}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:68rem;padding:1.5rem;font:16px/1.5 system-ui,sans-serif;
color:var(--fg);background:var(--bg)}
h1{font-size:1.6rem;margin:0 0 .2rem}h2{font-size:1.3rem;margin:2.5rem 0 .5rem;
border-top:1px solid var(--line);padding-top:1.2rem}h3{font-size:1.05rem;margin:1.6rem 0 .4rem}
p{margin:.4rem 0}.soft,caption,summary{color:var(--soft)}a{color:var(--dev)}
code{font:.9em ui-monospace,monospace;overflow-wrap:anywhere}
.wide{overflow-x:auto}.charts{display:flex;flex-wrap:wrap;gap:1rem}
.charts svg{flex:1 1 22rem;max-width:32rem;background:var(--card);border-radius:6px}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}
caption{text-align:left;padding:.3rem 0}
th,td{padding:.25rem .7rem;border-bottom:1px solid var(--line);text-align:right;
white-space:nowrap}
th{font-weight:600}tbody th{text-align:left}thead th:first-child{text-align:left}
.record td{text-align:left;white-space:normal;overflow-wrap:anywhere}
.record th{vertical-align:top;font-weight:400;color:var(--soft)}
.confusion td{text-align:center;min-width:3rem}.own{outline:2px solid var(--soft);
outline-offset:-2px}
svg text{font:11px system-ui,sans-serif;fill:var(--fg)}svg .title{font-size:13px;font-weight:600}
svg .x{text-anchor:middle}svg .y{text-anchor:end}svg polyline{fill:none;stroke-width:2}
svg line.train,svg polyline.train{stroke:var(--train);stroke-dasharray:5 4;stroke-width:2}
svg line.dev,svg polyline.dev{stroke:var(--dev);stroke-width:2}
svg circle.train{fill:var(--train)}svg circle.dev{fill:var(--dev)}svg .grid{stroke:var(--line)}
svg .ideal{stroke:var(--fg);stroke-dasharray:2 3}svg rect.right{fill:var(--dev);opacity:.55}
svg rect.count{fill:var(--count)}
.error{background:var(--card);border-radius:6px;padding:.7rem 1rem;margin:.8rem 0}
.text{font-size:1.05rem;white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.9}
mark{color:inherit;background:none;border-radius:3px;padding:.1em 0}
.f1{background:rgb(var(--for)/.14)}.f2{background:rgb(var(--for)/.26)}
.f3{background:rgb(var(--for)/.4);text-decoration:underline}
.f4{background:rgb(var(--for)/.55);text-decoration:underline 2px}
.a1{background:rgb(var(--against)/.12)}.a2{background:rgb(var(--against)/.22)}
.a3{background:rgb(var(--against)/.34);text-decoration:underline dotted}
.a4{background:rgb(var(--against)/.48);text-decoration:underline dotted 2px}
.s1{background:rgb(var(--cell)/.08)}.s2{background:rgb(var(--cell)/.17)}
.s3{background:rgb(var(--cell)/.27)}.s4{background:rgb(var(--cell)/.38)}
.s5{background:rgb(var(--cell)/.5)}
.windows td:first-child,.windows th{text-align:left;white-space:normal}
@media print{body{max-width:none}details{display:block}}
"""
