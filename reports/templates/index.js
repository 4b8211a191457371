"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const audits = JSON.parse(byId("audits").textContent);
  const rows = [...document.querySelectorAll("tr[data-audit]")];
  const texts = new Map(rows.map((row) => [row, `${row.dataset.audit} ${row.closest(".model").dataset.model} ${row.textContent}`.toLowerCase()]));

  const filter = () => {
    const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const model = byId("model").value;
    const worst = byId("severity").value;
    let shown = 0;
    for (const row of rows) {
      const fits = words.every((word) => texts.get(row).includes(word))
        && (model === "" || row.closest(".model").dataset.model === model)
        && (worst === "" || Number(row.dataset.severity) <= Number(worst));
      row.hidden = !fits;
      shown += fits;
    }
    for (const section of document.querySelectorAll(".model")) {
      section.hidden = !section.querySelector("tr[data-audit]:not([hidden])");
    }
    const counted = `${rows.length} ${rows.length === 1 ? "audit" : "audits"}`;
    byId("shown").textContent = shown === rows.length ? counted : `${shown} of ${counted}`;
  };

  const element = (tag, text, className) => {
    const made = document.createElement(tag);
    made.textContent = text;
    if (className) made.className = className;
    return made;
  };
  const percent = (share) => (share === undefined ? "–" : `${(100 * share).toFixed(1)}%`);
  const table = (title, head, lines) => {
    const made = element("table", "", "side-by-side");
    made.append(element("caption", title));
    const top = made.createTHead().insertRow();
    for (const text of head) {
      const cell = element("th", text);
      cell.scope = "col";
      top.append(cell);
    }
    const body = made.createTBody();
    for (const [name, cells, differs, className] of lines) {
      const row = body.insertRow();
      const label = element("th", name);
      label.scope = "row";
      row.append(label, ...cells.map((text) => element("td", text, className)));
      if (differs) row.className = "differs";
    }
    return made;
  };
  const names = (a, b) => [...new Set([...Object.keys(a), ...Object.keys(b)])];

  const compare = () => {
    const picked = rows.filter((row) => row.querySelector("input").checked).map((row) => audits[row.dataset.audit]);
    for (const row of rows) {
      const box = row.querySelector("input");
      box.disabled = picked.length === 2 && !box.checked;
    }
    byId("comparison").hidden = picked.length !== 2;
    if (picked.length !== 2) return;
    const [a, b] = picked.sort((one, other) => one.place - other.place);
    const facts = names(a.facts, b.facts).map((name) => [name, [a.facts[name], b.facts[name]], a.facts[name] !== b.facts[name]]);
    const shares = names(a.shares, b.shares)
      .map((name) => ({ name, from: a.shares[name], to: b.shares[name], change: (b.shares[name] || 0) - (a.shares[name] || 0) }))
      .sort((one, other) => Math.abs(other.change) - Math.abs(one.change))
      .map(({ name, from, to, change }) => [name, [percent(from), percent(to), `${change < 0 ? "−" : "+"}${percent(Math.abs(change))}`], false, "n"]);
    const said = (found) => (found ? `${found[0] > 1 ? `${found[0]} times; ` : ""}${found[1]}` : "–");
    const findings = names(a.findings, b.findings).map((name) => {
      const [from, to] = [a.findings[name], b.findings[name]];
      const change = from && to ? "in both" : to ? "came" : "went";
      return [name, [change, said(from), said(to)], change !== "in both"];
    });
    const reports = [a, b].map((audit) => {
      const line = element("p", "");
      const link = element("a", audit.name, "compared-report");
      link.href = audit.report;
      line.append(link);
      return line;
    });
    byId("compared").replaceChildren(
      ...reports,
      table("What was asked, and how far to trust it", ["", a.name, b.name], facts),
      table("Findings that came and went", ["Rule", "Change", a.name, b.name], findings),
      table("Shares, the largest change first", ["Share of", a.name, b.name, "Change"], shares),
    );
    byId("comparison").scrollIntoView({ block: "start" });
  };

  document.documentElement.classList.add("scripted");
  document.querySelector(".controls").hidden = false;
  byId("search").addEventListener("input", filter);
  for (const id of ["model", "severity"]) byId(id).addEventListener("change", filter);
  for (const row of rows) row.querySelector("input").addEventListener("change", compare);
  filter();
})();
