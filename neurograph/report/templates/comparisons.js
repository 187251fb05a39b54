"use strict";
(() => {
  const { $, MINUS, finite, number, signed, plural, many, el } = kit;
  const data = JSON.parse(document.getElementById("comparisons-data").textContent);
  const { rows, columns, square, measures, numbers } = data;
  const state = { measure: measures[0]?.[0] ?? null, at: null };
  const dark = matchMedia("(prefers-color-scheme: dark)");

  // A pair stands once among those of equal circuits, whichever is the row.
  const pairAt = new Map();
  for (const pair of data.pairs) {
    pairAt.set(`${pair.row},${pair.column}`, pair);
    if (square) pairAt.set(`${pair.column},${pair.row}`, pair);
  }
  const numberAt = (measure, key, [i, j]) => numbers[measure][key][i][j];
  const written = (x) => (finite(x) ? x.toFixed(2).replace(/^-0\.00$/, "0.00").replace("-", MINUS) : "–");
  const writtenP = (p) => (!finite(p) ? "" : p < 0.001 ? "p < 0.001" : `p = ${number(p)}`);
  const marks = (p) => (!finite(p) || p >= 0.05 ? "" : p < 0.01 ? "••" : "•");

  // ---------------------------------------------------------------- colours

  // Lightness alone tells a share, so any eye and a grey print can read it; of values of both
  // signs the hue tells the sign, too.
  const RAMPS = {
    share: [["#f2f6fa", "#bcd7ea", "#6baed0", "#2676b0", "#0a3f77"],
      ["#1a232d", "#1d4262", "#2b6f9f", "#5aa9d6", "#c4e6f8"]],
    signed: [["#8a3c00", "#e08a3c", "#f3f4f6", "#5a9fcb", "#0a4f86"],
      ["#ffc18a", "#a85a17", "#1a232d", "#2f78a8", "#a9dcf7"]],
  };
  const rgb = (hex) => [1, 3, 5].map((k) => parseInt(hex.slice(k, k + 2), 16));

  function colourOf(ramp, share) {
    const at = Math.max(0, Math.min(1, share)) * (ramp.length - 1);
    const k = Math.min(ramp.length - 2, Math.floor(at));
    const [from, to] = [rgb(ramp[k]), rgb(ramp[k + 1])];
    return from.map((x, c) => Math.round(x + (to[c] - x) * (at - k)));
  }

  function luminance(colour) {
    const [r, g, b] = colour.map((x) => ((x /= 255) <= 0.04045 ? x / 12.92
      : ((x + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  }

  /** Black or white, whichever stands out more. */
  const inkOn = (colour) => (luminance(colour) > 0.179 ? "#0b1118" : "#ffffff");

  function scaleOf(measure) {
    const values = numbers[measure].value.flat().filter(finite);
    const most = Math.max(0.1, ...values.map(Math.abs));
    const bothSigns = values.some((x) => x < 0);
    const [low, high] = bothSigns ? [-most, most] : [0, most];
    const ramp = RAMPS[bothSigns ? "signed" : "share"][dark.matches ? 1 : 0];
    return { low, high, ramp, colour: (x) => colourOf(ramp, (x - low) / (high - low)) };
  }

  // ---------------------------------------------------------------- the matrix

  function cellOf(scale, i, j) {
    const value = numberAt(state.measure, "value", [i, j]);
    const p = numberAt(state.measure, "p_value", [i, j]);
    const known = pairAt.has(`${i},${j}`);
    const chosen = state.at && state.at[0] === i && state.at[1] === j;
    const [a, b] = [rows[i], columns[j]];
    const made = el("td", { role: "gridcell", "data-at": `${i},${j}`, class: known ? null : "self",
      "aria-selected": String(Boolean(chosen)), tabindex: -1, title: `${a} and ${b}`,
      "aria-label": known ? `${a} and ${b}: ${written(value)} ${writtenP(p)}`
        : `${a} and ${b}: not compared`,
      click: known ? () => choose([i, j]) : null },
    known ? el("b", {}, written(value)) : null,
    known && marks(p) ? el("small", {}, marks(p)) : null);
    if (known && finite(value)) {
      const colour = scale.colour(value);
      made.style.background = `rgb(${colour.join(" ")})`;
      made.style.color = inkOn(colour);
    }
    return made;
  }

  function showMatrix() {
    if (!state.measure) return;
    const scale = scaleOf(state.measure);
    const name = (text, scope) => el("th", { scope, title: text }, el("span", {}, text));
    $("heat").replaceChildren(
      el("thead", {}, el("tr", {}, el("td"), ...columns.map((text) => name(text, "col")))),
      el("tbody", {}, ...rows.map((text, i) => el("tr", {}, name(text, "row"),
        ...columns.map((_, j) => cellOf(scale, i, j))))));
    const stop = state.at ?? [...pairAt.keys()][0]?.split(",").map(Number);
    if (stop) cellAt(stop).tabIndex = 0;
    $("low").textContent = written(scale.low);
    $("high").textContent = written(scale.high);
    $("ramp").replaceChildren(...Array.from({ length: 50 }, (_, k) => el("svg:rect", { x: 2 * k,
      width: 2.1, height: 8, fill: `rgb(${colourOf(scale.ramp, k / 49).join(" ")})` })));
    $("meaning").textContent = measures.find(([key]) => key === state.measure)[2];
  }

  const cellAt = ([i, j]) => $("heat").querySelector(`[data-at="${i},${j}"]`);

  function choose(at) {
    const focused = $("heat").contains(document.activeElement);
    state.at = at;
    showMatrix();
    showPair();
    tables.pairs.show();
    if (focused) cellAt(at).focus();
  }

  function matrixKey(event) {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1],
      ArrowRight: [0, 1] }[event.key];
    const here = event.target.closest("[data-at]")?.getAttribute("data-at").split(",").map(Number);
    if (!step || !here) {
      if (here && (event.key === "Enter" || event.key === " ")) {
        event.preventDefault();
        if (pairAt.has(here.join(","))) choose(here);
      }
      return;
    }
    event.preventDefault();
    let [i, j] = [here[0] + step[0], here[1] + step[1]];
    if (!pairAt.has(`${i},${j}`)) [i, j] = [i + step[0], j + step[1]]; // over a circuit beside itself
    if (!pairAt.has(`${i},${j}`)) return;
    choose([i, j]);
  }

  function showPair() {
    const { at } = state;
    const pair = pairAt.get(at.join(","));
    const [a, b] = [rows[at[0]], columns[at[1]]];
    const turned = pair.row !== at[0] || pair.column !== at[1];
    const [onlyA, both, flipped, onlyB] = turned ? [...pair.counts].reverse().map((_, k) =>
      pair.counts[[3, 1, 2, 0][k]]) : pair.counts;
    const line = ([key, title, meaning]) => el("tr", { class: key === state.measure ? "chosen" : null,
      title: meaning }, el("td", {}, title),
    el("td", { class: "num" }, written(numberAt(key, "value", at))),
    el("td", { class: "num" }, `${written(numberAt(key, "null_mean", at))} [`
      + `${written(numberAt(key, "null_low", at))}, ${written(numberAt(key, "null_high", at))}]`),
    el("td", { class: "num" }, writtenP(numberAt(key, "p_value", at))));
    const heads = ["Measure", "Value", "By chance", ""];
    $("pair").replaceChildren(...[
      el("h2", {}, `${a} and ${b}`),
      el("p", {}, `${plural(onlyA + both + flipped + onlyB, "neuron")} in either: ${many(both)} in `
        + `both with one sign, ${many(flipped)} with opposite signs, ${many(onlyA)} only in ${a}, `
        + `${many(onlyB)} only in ${b}.`),
      el("table", { class: "still" }, el("thead", {}, el("tr", {},
        ...heads.map((head) => el("th", { scope: "col" }, head)))),
      el("tbody", {}, ...measures.map(line))),
      ...pair.sentences.map((text) => el("p", { class: "sentence" }, text)),
      ...pair.notes.map((text) => el("p", { class: "note" }, text))]);
  }

  // ---------------------------------------------------------------- tables

  /** Effects in each circuit as bars up and down; a dot where a circuit has none. */
  function bars(row, circuits) {
    const most = row.effects.reduce((top, x) => Math.max(top, finite(x) ? Math.abs(x) : 0), 0) || 1;
    const step = circuits.length > 12 ? 7 : 14;
    const width = step * circuits.length;
    const drawn = row.effects.map((x, k) => {
      const height = finite(x) ? Math.max(1, 11 * Math.abs(x) / most) : 0;
      const hint = el("svg:title", {}, `${circuits[k]}: ${finite(x) ? signed(x) : "none"}`);
      return finite(x)
        ? el("svg:rect", { class: x < 0 ? "negative" : "positive", x: step * k + 1,
          width: step - 2, y: x < 0 ? 12 : 12 - height, height }, hint)
        : el("svg:circle", { cx: step * (k + 0.5), cy: 12, r: 1.4 }, hint);
    });
    const spoken = row.effects.map((x, k) => `${circuits[k]} ${finite(x) ? signed(x) : "none"}`);
    return el("svg:svg", { class: "bars", viewBox: `0 0 ${width} 24`, role: "img", width,
      height: 24, "aria-label": spoken.join(", ") },
    el("svg:path", { d: `M0 12H${width}` }), ...drawn);
  }

  function stableTable(kind) {
    const { rows: shown, circuits, all } = data.stable[kind];
    const listed = shown.map((row, k) => ({ ...row, row: k }));
    const one = { neurons: "Neuron", edges: "Edge", paths: "Path" }[kind];
    const columnsOf = [
      { key: "name", title: one, kind: "route", value: (row) => row.name, cell: (row) => row.name },
      { key: "layer", title: "Layer", kind: "layer", hint: "of an edge or path the first",
        value: (row) => row.layer, cell: (row) => row.layer },
      { key: "circuits", title: "circuits", hint: "how many circuits have it", kind: "number",
        value: (row) => row.circuits, cell: (row) => [`${row.circuits} of ${circuits.length}`,
          el("small", {}, `${row.positive} positive`)] },
      { key: "effect", title: "effect", hint: "mean and standard deviation; sorted by magnitude",
        kind: "number", value: (row) => (finite(row.effect) ? Math.abs(row.effect) : null),
        cell: (row) => [signed(row.effect), finite(row.std)
          ? el("small", {}, `std ${number(row.std)}`) : null] },
      { key: "each", title: "in each circuit", kind: "each", cell: (row) => bars(row, circuits) },
    ];
    const left = all - shown.length;
    return kit.linkedTable({ place: $(`panel-${kind}`), rows: listed, columns: columnsOf, all,
      note: left > 0 ? `${plural(left, "further row")} left out of this page.` : null });
  }

  function pairsTable() {
    const listed = data.pairs.map((pair, k) => ({ ...pair, at: [pair.row, pair.column], row: k,
      name: `${rows[pair.row]} and ${columns[pair.column]}` }));
    const same = (at) => state.at && (String(at) === String(state.at)
      || (square && String([...at].reverse()) === String(state.at)));
    return kit.linkedTable({ place: $("panel-pairs"), rows: listed, all: listed.length,
      columns: [{ key: "name", title: "Pair", kind: "route", value: (row) => row.name,
        cell: (row) => row.name },
      ...measures.map(([key, title]) => ({ key, title, hint: key, kind: "number",
        value: (row) => numberAt(key, "value", row.at), cell: (row) => [
          written(numberAt(key, "value", row.at)),
          el("small", {}, writtenP(numberAt(key, "p_value", row.at)))] }))],
      take: (row) => choose(row.at), isChosen: (row) => same(row.at) });
  }

  const tables = { pairs: pairsTable() };
  for (const kind of Object.keys(data.stable)) tables[kind] = stableTable(kind);

  function narrow() {
    const layer = $("layer")?.value ?? "";
    const named = $("named").value.trim().toLowerCase();
    for (const [tab, table] of Object.entries(tables)) {
      const has = (row) => row.name.toLowerCase().includes(named)
        && (tab === "pairs" || layer === "" || row.layer === layer);
      table.limit({ label: named, test: has });
    }
  }

  function listen() {
    $("measure").addEventListener("change", () => {
      state.measure = $("measure").value;
      showMatrix();
      if (state.at) showPair();
    });
    $("heat").addEventListener("keydown", matrixKey);
    $("layer")?.addEventListener("change", narrow);
    $("named").addEventListener("input", narrow);
    dark.addEventListener("change", showMatrix);
    kit.tabs((tab) => {
      $("narrow").hidden = !(tab in tables);
      if ($("layer-of")) $("layer-of").hidden = tab === "pairs";
    });
  }

  const layers = [...new Set((data.stable.neurons?.rows ?? []).map((row) => row.layer))];
  $("layer")?.replaceChildren(el("option", { value: "" }, "all"),
    ...layers.map((layer) => el("option", { value: layer }, layer)));
  if (state.measure) $("measure").value = state.measure;
  listen();
  showMatrix();
  for (const table of Object.values(tables)) table.show();
  window.neurograph = { ready: true, selection: () => state.at && state.at.slice() };
})();
