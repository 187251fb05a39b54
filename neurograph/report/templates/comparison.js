"use strict";
(() => {
  const { $, finite, size, number, withError, many, plural, part, clipped, el, facts,
    provenance } = kit;
  const data = JSON.parse(document.getElementById("comparison-data").textContent);
  const { nodes, edges, paths, columns, names, target, counts } = data;
  const STATUSES = ["only_a", "both", "flipped", "only_b"];
  const LABELS = { only_a: `only ${names[0]}`, both: "both", flipped: "sign flipped",
    only_b: `only ${names[1]}` };
  const GLYPHS = { only_a: "M2 2H12V12H2Z", only_b: "M7 .8L13.2 7L7 13.2L.8 7Z",
    both: "M13 7A6 6 0 1 1 1 7A6 6 0 1 1 13 7Z", flipped: "M1 1H13L7 7L13 13H1L7 7Z" };

  const largest = (item) => Math.max(size(item.effect_a), size(item.effect_b));
  const changeOf = (item) => (finite(item.difference) ? Math.abs(item.difference) : largest(item));

  function glyph(status) {
    return el("svg:svg", { class: `glyph bare ${status}`, viewBox: "0 0 14 14", role: "img",
      "aria-label": LABELS[status] }, el("svg:path", { class: "shape", d: GLYPHS[status] }));
  }

  const badge = (status) => el("span", { class: `badge ${status}` }, glyph(status), LABELS[status]);
  const effectText = (value, stderr) => withError(value, stderr).join("");

  // ---------------------------------------------------------------- what is shown

  const whole = (ref) => ref && `${ref[0]}[${ref[1]}]${ref[2] == null ? "" : `@${ref[2]}`}`;
  const keyOf = (side, ref) => `${side}|${JSON.stringify([ref[0], ref[1], ref[2] ?? null])}`;
  const placeOf = new Map();

  /** A name without its layer, which stands above the column; the number alone if that is all. */
  function within(node, label) {
    const ref = [node.a, node.b].find((side) => whole(side) === label);
    return ref ? label.slice(ref[0].length).replace(/^\[(\d+)\]$/, "$1") : label;
  }

  nodes.forEach((node, i) => {
    node.short = [node.label, node.label_b].filter(Boolean).map((label) => within(node, label))
      .join(" ↔ ");
    node.where = [...new Set([node.a?.[0], node.b?.[0]].filter(Boolean))].join(" ↔ ");
    node.name = node.label_b ? `${node.label} ↔ ${node.label_b}` : node.label;
    node.hay = [node.name, node.a?.[0], node.b?.[0], whole(node.a), whole(node.b)].join("\n")
      .toLowerCase();
    node.strength = largest(node);
    node.change = changeOf(node);
    for (const side of ["a", "b"]) if (node[side]) placeOf.set(keyOf(side, node[side]), i);
  });
  for (const edge of edges) {
    edge.name = `${nodes[Number(edge.from)].name} → ${nodes[Number(edge.to)].name}`;
    edge.kind = STATUSES.indexOf(edge.status);
    edge.strength = largest(edge);
    edge.change = changeOf(edge);
  }
  for (const path of paths) {
    if (!path.chain.includes(null)) path.name = path.chain.map((i) => nodes[i].name).join(" → ");
    path.change = changeOf(path);
  }

  const namesLayer = (node) => node.label.startsWith(`${node.where}[`);
  const total = (table) => STATUSES.reduce((sum, status) => sum + counts[table][status], 0);
  const top = (key) => [...nodes, ...edges].reduce((most, item) => Math.max(most, item[key]), 0);
  const tops = { strength: top("strength"), change: top("change") };
  const shown = { threshold: 0, by: "strength" };
  for (const status of STATUSES) shown[status] = true;
  const shows = {
    node: (node) => shown[node.status] && node[shown.by] >= shown.threshold,
    edge: (edge) => shown[edge.status] && edge[shown.by] >= shown.threshold,
  };

  // ---------------------------------------------------------------- the graph

  function outline(context, { x, y, status }, r) {
    context.beginPath();
    const line = (...points) => {
      points.forEach(([u, v], k) => context[k ? "lineTo" : "moveTo"](x + u * r, y + v * r));
      context.closePath();
    };
    if (status === "only_a") line([-0.9, -0.9], [0.9, -0.9], [0.9, 0.9], [-0.9, 0.9]);
    else if (status === "only_b") line([0, -1.25], [1.25, 0], [0, 1.25], [-1.25, 0]);
    else if (status === "both") context.arc(x, y, r, 0, 2 * Math.PI);
    else line([-1, -1.05], [1, -1.05], [0, 0], [1, 1.05], [-1, 1.05], [0, 0]);
  }

  function paintNode(context, node, r, scale, theme) {
    const alone = node.status === "only_a" || node.status === "only_b";
    outline(context, node, r);
    context.lineJoin = "round";
    context.lineWidth = 2.4 / scale; // a rim that parts the neuron from the edges behind it
    context.strokeStyle = theme.surface;
    context.stroke();
    const soft = alone && r * scale >= 3;
    context.fillStyle = theme[soft ? `${node.status}-soft` : node.status];
    context.fill();
    if (!soft) return;
    const rim = Math.max(r * 0.22, 1.4 / scale);
    outline(context, node, r - rim / 2);
    context.lineWidth = rim;
    context.strokeStyle = theme[node.status];
    context.stroke();
  }

  const pairFacts = (item) => facts([
    [clipped(names[0], 24), effectText(item.effect_a, item.stderr_a)],
    [clipped(names[1], 24), effectText(item.effect_b, item.stderr_b)],
    ["difference", effectText(item.difference, item.stderr)],
    ["in", badge(item.status)]]);

  function tip({ node, edge }) {
    if (edge) return [el("h3", {}, edge.name), pairFacts(edge)];
    return [el("h3", {}, node.name), el("p", { class: "where" }, placesOf(node)), pairFacts(node)];
  }

  function placesOf(node) {
    const placed = (ref) => `${ref[0]} · neuron ${ref[1]}`
      + (ref[2] == null ? "" : ` · position ${ref[2]}`);
    const same = node.a && node.b && whole(node.a) === whole(node.b);
    const where = same ? placed(node.a)
      : [node.a && `${names[0]}: ${placed(node.a)}`, node.b && `${names[1]}: ${placed(node.b)}`]
        .filter(Boolean).join("; ");
    return where + (finite(node.similarity) ? ` · similarity ${number(node.similarity, 2)}` : "")
      + (node.tied ? " · tied: chance chose it" : "") + (node.target ? ` · read by ${target}` : "");
  }

  const spokenEffects = (item) => `${LABELS[item.status]}; ${names[0]} `
    + `${effectText(item.effect_a, item.stderr_a)}, ${names[1]} `
    + `${effectText(item.effect_b, item.stderr_b)}, difference `
    + `${effectText(item.difference, item.stderr)}.`;

  let graph = null;
  const chosenNow = () => graph?.state.chosen ?? null;

  // ---------------------------------------------------------------- tables

  const cell = (value, stderr) => {
    const [effect, spread] = withError(value, stderr);
    return [effect, spread ? el("small", {}, spread.trim()) : null];
  };
  const effects = [
    { key: "a", title: clipped(names[0], 14), hint: names[0], kind: "number",
      cell: (row) => cell(row.effect_a, row.stderr_a), value: (row) => row.effect_a },
    { key: "b", title: clipped(names[1], 14), hint: names[1], kind: "number",
      cell: (row) => cell(row.effect_b, row.stderr_b), value: (row) => row.effect_b },
    { key: "change", title: "change", hint: "difference, second less first; sorted by magnitude",
      kind: "number", cell: (row) => cell(row.difference, row.stderr), value: (row) => row.change },
  ];
  const mark = { key: "status", title: "status", kind: "kind", cell: (row) => glyph(row.status) };
  const titled = (title, named) => ({ key: "name", title, kind: "route", cell: named,
    value: (row) => row.name });

  function tableOf(id, rows, columnsOf, take, isDimmed) {
    const left = data.left_out[id] ?? 0;
    return kit.linkedTable({
      place: $(id), columns: columnsOf, take, isDimmed, glyph,
      rows: [...rows].sort((p, q) => p.row - q.row), all: total(id),
      filters: STATUSES.map((key) => ({ key, label: LABELS[key], count: counts[id][key] })),
      note: left ? `The ${plural(left, "weakest row").replace(/^1 /, "")} in both circuits `
        + `${left === 1 ? "is" : "are"} left out of this page.` : null,
      isChosen: (row) => [chosenNow()?.node, chosenNow()?.edge, chosenNow()?.path].includes(row),
    });
  }

  const again = (item, take) => ([chosenNow()?.node, chosenNow()?.edge, chosenNow()?.path]
    .includes(item) ? graph.clear() : take(item));
  const takeNode = (node) => graph.goTo(node);
  const takeEdge = (edge) => graph.choose(graph.ends(edge), `Edge ${edge.name}, `
    + spokenEffects(edge));
  const takePath = (path) => graph.choose(graph.along(path), `Path ${path.name}, `
    + spokenEffects(path));
  const similar = nodes.some((node) => finite(node.similarity)) ? [{ key: "similarity",
    title: "alike", hint: "similarity of the pair's activations", kind: "alike number",
    cell: (row) => [number(row.similarity, 2), row.tied ? el("small", {}, "tied") : null],
    value: (row) => row.similarity }] : [];

  const tables = {
    neurons: tableOf("neurons", nodes, [mark, titled("Neuron", (row) => [row.name,
      namesLayer(row) ? null : el("small", {}, row.where)]), ...effects, ...similar],
    (node) => again(node, takeNode), (node) => graph && !graph.state.nodeOn[node.i]),
    edges: tableOf("edges", edges, [mark, titled("Edge", (row) => row.name), ...effects],
      (edge) => again(edge, takeEdge), (edge) => graph && !graph.state.edgeOn[edge.e]),
    paths: tableOf("paths", paths, [mark, titled("Path", (row) => row.name), ...effects],
      (path) => again(path, takePath), () => false),
  };

  const showTab = kit.tabs();

  /** Let the tables follow the selection. */
  function chosen(selected) {
    showPanel();
    if (!selected || selected.kind === "neuron") {
      const node = selected?.node;
      const through = (test) => node && { label: `through ${node.name}`, test };
      tables.edges.limit(through((edge) => edge.a === node.i || edge.b === node.i) ?? null);
      tables.paths.limit(through((path) => path.chain.includes(node.i)) ?? null);
      if (node) tables.neurons.reveal(node);
      else tables.neurons.show();
      return;
    }
    tables.neurons.show();
    if (selected.kind === "edge") tables.edges.reveal(selected.edge);
    else tables.edges.show();
    if (selected.kind === "path") tables.paths.reveal(selected.path);
    else tables.paths.show();
  }

  // ---------------------------------------------------------------- panels

  function showPanel() {
    const selected = chosenNow();
    const item = selected && (selected.node ?? selected.edge ?? selected.path);
    $("neuron").hidden = !item;
    if (!item) return;
    const value = (label, x, stderr) => {
      const [effect, spread] = withError(x, stderr);
      return el("div", {}, el("small", { title: label }, label), el("b", {}, effect,
        el("small", {}, spread)));
    };
    const link = (tab, text) => el("button", { type: "button", class: "plain",
      click: () => showTab(tab, true) }, text);
    const links = [];
    let off = false;
    if (selected.node) {
      off = !graph.state.nodeOn[item.i];
      const through = paths.filter((path) => path.chain.includes(item.i)).length;
      links.push(link("edges", plural(item.ins.length + item.outs.length, "edge")),
        link("paths", plural(through, "path")));
    } else if (selected.edge) off = !graph.state.edgeOn[item.e];
    const close = el("button", { type: "button", class: "plain", click: graph.clear,
      "aria-label": "Clear the selection" }, "✕");
    $("neuron").replaceChildren(...[
      el("div", { class: "title-row" }, el("h2", {}, item.name), close),
      selected.node ? el("p", { class: "where" }, placesOf(item)) : null,
      el("div", { class: "pair" }, value(names[0], item.effect_a, item.stderr_a),
        value(names[1], item.effect_b, item.stderr_b),
        value("difference", item.difference, item.stderr)),
      el("div", {}, badge(item.status), ...links),
      off ? el("p", { class: "note" }, "The filters hide it; it is drawn while selected.") : null,
    ].filter(Boolean));
  }

  function showCounts({ shownNodes, shownEdges }) {
    const left = data.left_out.edges;
    $("counts").textContent = `${part(shownNodes, nodes.length)} neurons · `
      + `${part(shownEdges, edges.length)} edges${left ? ` (${many(left)} weaker left out)` : ""}`;
    $("threshold-value").textContent = shown.threshold ? number(shown.threshold) : "nothing";
    if (graph) {
      showPanel();
      tables.neurons.show();
      tables.edges.show();
    }
  }

  function showSummary() {
    const { only_a: a, only_b: b, both, flipped } = counts.neurons;
    let text = `${plural(total("neurons"), "neuron")} in either circuit: ${many(both)} in both with `
      + `one sign, ${many(flipped)} in both with opposite signs, ${many(a)} only in ${names[0]}, `
      + `${many(b)} only in ${names[1]}.`;
    const first = nodes.filter((n) => n.counted).sort((p, q) => p.row - q.row)[0];
    if (first) {
      text += ` Most changed: ${first.name}, from ${effectText(first.effect_a, first.stderr_a)} to `
        + `${effectText(first.effect_b, first.stderr_b)}.`;
    }
    $("summary").textContent = text;
    for (const status of STATUSES) {
      $(`count-${status}`).textContent = many(counts.neurons[status]);
      $(`show-${status}`).title = `${LABELS[status]}: ${plural(counts.neurons[status], "neuron")}, `
        + plural(counts.edges[status], "edge");
    }
  }

  // ---------------------------------------------------------------- controls

  const slider = $("threshold");

  function setThreshold(value, by = shown.by) {
    shown.by = by;
    shown.threshold = Math.max(0, value);
    $("by").value = by;
    slider.value = String(Math.round(1000 * Math.cbrt(shown.threshold / (tops[by] || 1))));
    graph.refilter();
  }

  function listen() {
    const read = () => {
      shown.by = $("by").value;
      shown.threshold = tops[shown.by] * (Number(slider.value) / 1000) ** 3; // room for weak effects
      graph.refilter();
    };
    slider.addEventListener("input", read);
    $("by").addEventListener("change", read);
    for (const status of STATUSES) {
      $(`show-${status}`).addEventListener("click", () => {
        shown[status] = !shown[status];
        $(`show-${status}`).setAttribute("aria-pressed", String(shown[status]));
        graph.refilter();
      });
    }
  }

  function listenLayers() {
    const rows = [...document.querySelectorAll("#layer-table tbody tr")];
    rows.forEach((row, k) => {
      const take = () => {
        const { a, b } = data.layers[k];
        tables.neurons.limit({ label: `layer ${[...new Set([a, b].filter(Boolean))].join(" ↔ ")}`,
          test: (node) => (a !== null && node.a?.[0] === a) || (b !== null && node.b?.[0] === b) });
        showTab("neurons", true);
      };
      row.addEventListener("click", take);
      row.addEventListener("keydown", (event) => {
        const next = rows[k + ({ ArrowDown: 1, ArrowUp: -1 }[event.key] ?? 0)];
        if (event.key === "Enter" || event.key === " ") take();
        else if (next && next !== row) {
          row.tabIndex = -1;
          next.tabIndex = 0;
          next.focus();
        } else return;
        event.preventDefault();
      });
    });
  }

  /** A column with what stands above it. */
  function headed(band) {
    const own = nodes.filter((node) => node.layer === band.layer);
    const common = own.filter((node) => ["both", "flipped"].includes(node.status)).length;
    const titles = [...new Set([band.a, ...band.b].filter(Boolean))];
    const alone = !band.a || !band.b.length; // the other model has no such layer
    return { ...band, titles, texts: alone
      ? [`${many(own.length)}, ${clipped(names[band.a ? 0 : 1], 24)} only`, many(own.length)]
      : [`${many(common)} of ${many(own.length)} in both`, `${many(common)} of ${many(own.length)}`,
        `${common}/${own.length}`] };
  }

  let ready = false;
  const nodeAt = (side, ref) => nodes[placeOf.get(keyOf(side, ref))];
  window.neurograph = {
    get ready() { return ready; },
    select(side, ...ref) {
      const node = nodeAt(side, ref);
      if (node) graph.goTo(node);
      return Boolean(node);
    },
    selection() {
      const selected = chosenNow();
      if (!selected) return null;
      const item = selected.node ?? selected.edge ?? selected.path;
      return { kind: selected.kind, name: item.name, status: item.status, row: item.row,
        nodes: selected.nodes.size, edges: selected.edges.size };
    },
    visible: () => ({ nodes: graph?.state.shownNodes ?? 0, edges: graph?.state.shownEdges ?? 0 }),
    setThreshold,
    position: (side, ...ref) => graph.position(nodeAt(side, ref)),
  };

  showSummary();
  listenLayers();
  $("provenance").replaceChildren(...data.provenance.flatMap(([name, about]) =>
    [el("h3", {}, name), provenance(about)]));
  if (nodes.length) {
    graph = kit.graph({
      nodes, edges, columns: columns.map(headed),
      shows, paintNode, tip, chosen, takeEdge, lastLabel: target, filtered: showCounts,
      kinds: [{ colour: "only_a", dash: [1, 0.6] }, { colour: "both", dash: [] },
        { colour: "flipped", dash: [1, 0.4, 0.25, 0.4] }, { colour: "only_b", dash: [0.32, 0.42] }],
      colours: STATUSES.flatMap((status) => [status, `${status}-soft`]),
      speak: (node) => `${node.name}, ${node.where}, ${spokenEffects(node)}`,
    });
    kit.searchBox({
      nodes, take: graph.goTo, none: "No neuron or layer has this in its name.",
      where: (node) => (namesLayer(node) ? null : node.where),
      chip: (node) => glyph(node.status),
    });
    listen();
    graph.start();
  }
  for (const table of Object.values(tables)) table.show();
  ready = true;
})();
