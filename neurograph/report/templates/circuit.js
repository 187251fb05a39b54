"use strict";
(() => {
  const { MINUS, $, finite, size, number, withError, plural, part, el, facts, table,
    provenance } = kit;
  const data = JSON.parse(document.getElementById("circuit-data").textContent);
  const { nodes, edges, columns, target } = data;

  if (!nodes.length) {
    $("subtitle").textContent = "The search kept no neuron.";
    $("summary").textContent = `No neuron was found to push ${target} up or down.`;
    $("notes").replaceChildren(...data.notes.map((note) => el("li", {}, note)));
    $("notes").hidden = !data.notes.length;
    showAudit();
    window.neurograph = {
      ready: true, select: () => false, selection: () => null, setThreshold: () => {},
      visible: () => ({ nodes: 0, edges: 0 }), position: () => null,
    };
    return;
  }

  const peak = (items) => items.reduce((top, item) => Math.max(top, size(item.effect)), 0);
  const effectText = (item) => withError(item.effect, item.stderr).join("");

  /** What computing some effects again by hooks alone gave. */
  function showAudit() {
    $("audit").textContent = data.audit;
    $("audit").hidden = !data.audit;
  }

  function effectChip(item, key = "effect", error = "stderr") {
    const [value, spread] = withError(item[key], item[error]);
    const sign = size(item[key]) === 0 ? "" : item[key] < 0 ? "negative" : "positive";
    const estimated = key === "total_effect" ? item.total_estimated
      : key === "effect" && item.estimated;
    const title = estimated ? "estimated, not measured by intervention" : null;
    return el("span", { class: `effect ${sign}`, title }, estimated ? `≈ ${value}` : value,
      el("small", {}, spread));
  }

  // ---------------------------------------------------------------- the graph

  const column = new Map(columns.map((band) => [band.layer, band]));
  const place = new Map();
  const keyOf = (layer, index, position) => JSON.stringify([layer, index, position ?? null]);
  nodes.forEach((node, i) => {
    const unnamed = node.label === `${node.layer}[${node.index}]`; // its column names the layer
    const after = node.label.slice(node.layer.length);
    const within = node.label.startsWith(node.layer) && /^(\[\d+\]| (head|group|direction|family|feature) \d+| remainder)( ?@\d+( .*)?)?$/s.test(after) ? after : "";
    node.short = unnamed ? String(node.index) : within.trim() || node.label;
    node.hay = `${node.label}\n${node.layer}\n${node.layer}[${node.index}]`.toLowerCase();
    node.strength = size(node.effect);
    place.set(keyOf(node.layer, node.index, node.position), i);
  });
  for (const edge of edges) {
    edge.strength = size(edge.effect);
    edge.kind = edge.sign === "negative" ? 1 : 0;
  }
  for (const band of columns) {
    const total = finite(band.neurons) ? ` / ${band.neurons.toLocaleString("en")}` : "";
    const kept = `${band.kept.toLocaleString("en")}${total}`;
    const type = band.type && band.type !== band.layer ? `${band.type} · ` : "";
    band.texts = [`${type}${kept} kept`, `${kept} kept`, kept];
  }
  const paths = ["positive", "negative"].flatMap((sign) =>
    data.paths[sign].map((path) => ({ ...path, sign, chain: path.neurons.map(Number) })));
  const topPath = peak(paths) || 1;
  const topEffect = Math.max(peak(edges), peak(nodes));

  // ---------------------------------------------------------------- the graph

  const shown = { threshold: 0, positive: true, negative: true };
  const open = (node) => (node.sign === "zero"
    ? shown.positive || shown.negative : shown[node.sign]);
  const shows = {
    node: (node) => open(node) && node.strength >= shown.threshold,
    edge: (edge) => shown[edge.sign === "negative" ? "negative" : "positive"]
      && open(nodes[edge.a]) && open(nodes[edge.b]) && edge.strength >= shown.threshold,
  };

  function paintNode(context, node, r, scale, theme) {
    const { x, y } = node;
    const disc = (radius, start = 0, end = 2 * Math.PI) => {
      context.beginPath();
      context.arc(x, y, radius, start, end);
    };
    disc(r + 1.2 / scale);
    context.fillStyle = theme.surface; // a rim that parts the neuron from the edges behind it
    context.fill();
    if (node.sign !== "positive") {
      const rim = Math.max(r * 0.2, 1.3 / scale);
      disc(r - rim / 2);
      context.fillStyle = r * scale < 2.8 ? theme.neg : theme["neg-soft"];
      context.fill();
      context.lineWidth = rim;
      context.strokeStyle = theme.neg;
      context.stroke();
    }
    if (node.sign !== "negative") {
      if (node.sign === "zero") disc(r, Math.PI / 2, 1.5 * Math.PI);
      else disc(r);
      context.fillStyle = theme.pos;
      context.fill();
    }
    if (r * scale >= 6 && node.sign !== "zero") paintGlyph(context, node, r, theme);
  }

  function paintGlyph(context, { x, y, sign }, r, theme) {
    const arm = r * 0.46;
    context.beginPath();
    context.moveTo(x - arm, y);
    context.lineTo(x + arm, y);
    if (sign === "positive") {
      context.moveTo(x, y - arm);
      context.lineTo(x, y + arm);
    }
    context.lineWidth = r * 0.19;
    context.strokeStyle = sign === "positive" ? theme.surface : theme.neg;
    context.stroke();
  }

  const graph = kit.graph({
    nodes, edges, columns, shows, paintNode, tip, lastLabel: target,
    kinds: [{ colour: "pos", dash: [] }, { colour: "neg", dash: [1, 0.6] }],
    colours: ["pos", "neg", "neg-soft"],
    chosen() {
      showPanel();
      showPaths();
    },
    filtered: showCounts,
    speak: (node) => `${node.label}, layer ${node.layer}, effect ${effectText(node)}, `
      + `${SIGNS[node.sign].slice(2)}, ${node.ins.length} edges in, ${node.outs.length} out.`,
  });
  const { state, goTo, clear } = graph;

  // ---------------------------------------------------------------- tooltip

  function strip(node, width = 240) {
    const known = ["q0", "q5", "q25", "q50", "q75", "q95", "q100"].map((key) => node[key]);
    const low = finite(known[0]) ? known[0] : node.min;
    const high = finite(known[6]) ? known[6] : node.max;
    if (!finite(low) || !finite(high) || !finite(known[3]) || high <= low) return null;
    const x = (value) => 6 + (width - 12) * ((value - low) / (high - low));
    const line = (x0, y0, x1, y1, name) =>
      el("svg:line", { x1: x0, y1: y0, x2: x1, y2: y1, class: name ?? "" });
    const text = (value, anchor, at) =>
      el("svg:text", { x: at, y: 42, "text-anchor": anchor }, number(value));
    const parts = [line(x(low), 14, x(high), 14)];
    for (const end of [low, high]) parts.push(line(x(end), 11, x(end), 17));
    for (const q of [known[1], known[5]]) if (finite(q)) parts.push(line(x(q), 8, x(q), 20));
    if (finite(known[2]) && finite(known[4])) {
      parts.push(el("svg:rect", { x: x(known[2]), y: 6, rx: 2, height: 16, class: "box",
        width: Math.max(1, x(known[4]) - x(known[2])) }));
    }
    parts.push(line(x(known[3]), 4, x(known[3]), 24, "middle"));
    if (finite(node.mean)) {
      parts.push(el("svg:circle", { cx: x(node.mean), cy: 14, r: 2.6, class: "mean" }));
    }
    parts.push(text(low, "start", 4), text(high, "end", width - 4));
    const mid = x(known[3]);
    if (mid > 75 && mid < width - 75) parts.push(text(known[3], "middle", mid));
    return el("svg:svg", { viewBox: `0 0 ${width} 46`, class: "strip", role: "img",
      "aria-label": `values from ${number(low)} to ${number(high)}, median `
        + number(known[3]) }, ...parts);
  }

  const SIGNS = { positive: "+ pushes up", negative: MINUS + " pushes down",
    zero: "± up and down, which cancels" };

  const disagrees = (node) => finite(node.total_effect) && node.total_effect * node.effect < 0;

  /** What a neuron does: through the circuit, through either part of it, and in total. */
  function effects(node, total) {
    const parts = ["through_positive", "through_negative"].map((part) =>
      (finite(node[`${part}_effect`]) ? effectChip(node, `${part}_effect`, `${part}_stderr`) : null));
    const both = parts.every(Boolean);
    return [
      [`through neurons that raise ${target}`, both ? parts[0] : null],
      [`through neurons that lower ${target}`, both ? parts[1] : null],
      ["total effect", total && finite(node.total_effect)
        ? effectChip(node, "total_effect", "total_stderr") : null],
      ["signs disagree", disagrees(node)
        ? "it pushes one way through the circuit, the other way in total" : null],
    ];
  }

  function where(node) {
    const { type, kind } = column.get(node.layer);
    const what = /remainder( @|$)/.test(node.label) ? "remainder" : `${kind ?? "neuron"} ${node.index}`;
    const token = node.token === undefined ? "" : ` “${node.token}”`;
    return `${node.layer} · ${what}`
      + (node.position === undefined ? "" : ` · position ${node.position}${token}`)
      + (type && type !== node.layer ? ` · ${type}` : "")
      + (node.target ? ` · read by ${target}` : "");
  }

  /** An image among the samples, its outline where a map peaks. */
  function picture(one) {
    const image = data.pictures?.[one.sample];
    if (!image) return null;
    const canvas = el("canvas", { width: image.width, height: image.height, role: "img",
      "aria-label": `sample ${one.sample}` });
    const bytes = Uint8Array.from(atob(image.pixels), (c) => c.charCodeAt(0));
    const context = canvas.getContext("2d");
    const pixels = context.createImageData(image.width, image.height);
    for (let i = 0; i < image.width * image.height; i += 1) {
      for (let c = 0; c < 3; c += 1) {
        pixels.data[4 * i + c] = bytes[image.channels * i + (image.channels === 3 ? c : 0)];
      }
      pixels.data[4 * i + 3] = 255;
    }
    context.putImageData(pixels, 0, 0);
    const frame = el("span", { class: "picture" }, canvas);
    if (one.outline) {
      const mark = el("span", { class: "outline" });
      ["left", "top", "width", "height"].forEach((side, i) => {
        mark.style[side] = `${100 * one.outline[i]}%`;
      });
      frame.append(mark);
    }
    return frame;
  }

  function exemplars(node) {
    const parts = [];
    for (const [end, title] of [["highest", "Highest in"], ["between", "In between"],
      ["lowest", "Lowest in"]]) {
      const own = (node.exemplars ?? []).filter((one) => one.end === end);
      if (!own.length) continue;
      const peaks = own.some((one) => one.outline || one.tokens) ? " (at its peak)" : "";
      parts.push(el("h3", {}, title + peaks), el("ul", { class: "exemplars" }, ...own.map((one) => {
        const words = el("span", { class: "words" }, one.shows ?? "");
        for (const [token, shade] of one.tokens ?? []) {
          const mark = el("mark", { class: shade < 0 ? "negative" : "positive" }, token);
          mark.style.setProperty("--shade", `${Math.round(70 * Math.abs(shade))}%`);
          words.append(mark, " ");
        }
        const label = one.label === undefined ? "" : ` · ${one.label}`;
        return el("li", {}, picture(one), el("span", {},
          el("b", {}, number(one.value)), ` sample ${one.sample}${label}`, el("br"), words));
      })));
    }
    return parts;
  }

  function statistics(node, full) {
    const some = (key, value) => (finite(node[key]) ? value : null);
    const range = (low, high) => (finite(node[low]) && finite(node[high])
      ? `${number(node[low])} … ${number(node[high])}` : null);
    return [
      ["made of", node.made_of],
      ["mean ± std", some("mean", `${number(node.mean)} ± ${number(node.std)}`)],
      ["median", full ? some("q50", number(node.q50)) : null],
      ["middle half", full ? range("q25", "q75") : null],
      ["5 % … 95 %", range("q5", "q95")],
      ["least … most", full ? range("min", "max") : null],
      ["values", full ? some("count", (node.count ?? 0).toLocaleString("en")) : null],
      ["ablated", node.ablated],
      ["mean after the ablation", some("mean_after",
        `${number(node.mean_after)} (${number(node.mean_before)} before)`)],
      ["moved by the ablation", some("wasserstein_std", `${number(node.wasserstein_std)} std`)],
    ];
  }

  function tip({ node, edge }) {
    if (edge) {
      return [el("h3", {}, `${nodes[edge.a].label} → ${nodes[edge.b].label}`),
        facts([["effect of the edge", effectChip(edge)]])];
    }
    return [el("h3", {}, node.label), el("p", { class: "where" }, where(node)),
      facts([["effect through the circuit", effectChip(node)], ...effects(node, true),
        ["sign", SIGNS[node.sign]], ...statistics(node, false)]), strip(node)];
  }

  function choosePath(path) {
    graph.choose(graph.along(path), `Path ${path.chain.map((i) => nodes[i].label).join(", ")}, `
      + `effect ${effectText(path)}.`);
  }

  // ---------------------------------------------------------------- panels

  function routeOf(chain, marked, whole) {
    const cell = el("td", { class: "route" });
    const left = whole || chain.length <= 8 ? 0 : chain.length - 6;
    chain.forEach((i, k) => {
      if (left && k === 3) cell.append(el("span", { class: "hop" }, `… ${left} more …`), " ");
      if (left && k >= 3 && k < 3 + left) return;
      const name = el(i === marked ? "b" : "span", {}, nodes[i].label);
      // The arrow stays with the name before it, so a line never starts with one.
      const arrow = k < chain.length - 1 ? el("i", {}, "→") : null;
      cell.append(el("span", { class: "hop" }, name, arrow), " ");
    });
    return cell;
  }

  function pathRow(path, marked) {
    const chosen = state.chosen?.path === path;
    const bar = el("span", { class: "bar" });
    bar.style.width = `${Math.max(3, 84 * size(path.effect) / topPath)}px`;
    const button = el("button", { type: "button", "aria-pressed": String(chosen) },
      effectChip(path));
    const [mark, meaning] = path.measured
      ? ["✓ measured", "measured by intervening along the path"]
      : ["≈ by its edges", "not measured by intervention, ranked by its edges"];
    const seal = el("span", { class: "seal", title: meaning }, mark);
    const row = el("tr", { class: `${path.sign}${chosen ? " chosen" : ""}`,
      click: () => (state.chosen?.path === path ? clear() : choosePath(path)) },
    el("td", { class: "value" }, button, bar, seal), routeOf(path.chain, marked, chosen));
    return row;
  }

  const expanded = { positive: false, negative: false };

  function showPaths() {
    const parts = [];
    for (const sign of ["positive", "negative"]) {
      const own = paths.filter((path) => path.sign === sign);
      const line = el("svg:svg", { viewBox: "0 0 22 8", "aria-hidden": "true" },
        el("svg:path", { d: "M1 4H21" }));
      parts.push(el("h3", { class: sign }, line, sign === "positive"
        ? `Paths that push ${target} up` : `Paths that push ${target} down`));
      if (!own.length) {
        parts.push(el("p", { class: "note" }, "None was kept."));
        continue;
      }
      const shown = expanded[sign] ? own : own.slice(0, 6);
      parts.push(table(["Effect", "Path"], shown.map((path) => pathRow(path))));
      if (own.length > 6) {
        parts.push(el("button", { type: "button", class: "plain more", click: () => {
          expanded[sign] = !expanded[sign];
          showPaths();
        } }, expanded[sign] ? "Show fewer" : `Show all ${own.length}`));
      }
    }
    $("paths").replaceChildren(...parts);
  }

  /** The route through a neuron whose weakest edge is strongest: what to look at, not a measure. */
  function widestRoute(start) {
    // To reach what the target reads comes first, then width.
    const goal = (i, width) => width + (nodes[i].target ? topEffect : 0);
    const half = (links, end) => {
      const best = new Map([[start.i, [Infinity, null]]]);
      const order = links === "ins" ? -1 : 1; // ids grow with the columns
      const queue = [...state.chosen.nodes.keys()]
        .filter((i) => (i - start.i) * order >= 0).sort((p, q) => (p - q) * order);
      let last = start.i;
      for (const i of queue) {
        const reached = best.get(i);
        if (!reached) continue;
        const open = nodes[i][links].filter((e) => state.edgeOn[e]);
        const ends = !open.length || (links === "outs" && nodes[i].target);
        if (ends && (last === start.i || goal(i, reached[0]) > goal(last, best.get(last)[0]))) {
          last = i;
        }
        for (const e of open) {
          const width = Math.min(reached[0], size(edges[e].effect));
          const j = edges[e][end];
          if (!best.has(j) || best.get(j)[0] < width) best.set(j, [width, i]);
        }
      }
      const chain = [];
      for (let i = last; i !== null; i = best.get(i)[1]) chain.push(i);
      return { chain, width: best.get(last)[0] };
    };
    const back = half("ins", "a");
    const ahead = half("outs", "b");
    return { chain: [...back.chain, ...ahead.chain.reverse().slice(1)],
      width: Math.min(back.width, ahead.width) };
  }

  function neighbours(node, links, end, title) {
    const linked = node[links].map((e) => edges[e])
      .sort((p, q) => size(q.effect) - size(p.effect) || p.e - q.e);
    if (!linked.length) return [];
    const rows = linked.slice(0, 5).map((edge) => el("tr", {
      class: edge.sign, click: () => goTo(nodes[edge[end]]) },
    el("td", { class: "value" }, el("button", { type: "button" }, effectChip(edge))),
    el("td", { class: "route" }, nodes[edge[end]].label)));
    const rest3 = linked.length > 5 ? ` strongest 5 of ${linked.length}` : ` ${linked.length}`;
    return [el("h3", {}, `${title} ·${rest3}`), el("table", {}, el("tbody", {}, ...rows))];
  }

  function throughNeuron(node) {
    const own = paths.filter((path) => path.chain.includes(node.i))
      .sort((p, q) => q.measured - p.measured || size(q.effect) - size(p.effect));
    const parts = [el("h3", {}, "Strongest paths through it")];
    if (own.length) {
      parts.push(table(["Effect", "Path"], own.slice(0, 8).map((p) => pathRow(p, node.i))));
      return parts;
    }
    const route = widestRoute(node);
    if (route.chain.length < 2) {
      return [...parts, el("p", { class: "note" }, "No path through it is shown.")];
    }
    const path = { chain: route.chain, sign: "positive", effect: null, measured: false };
    const row = el("tr", { click: () => choosePath(path) }, routeOf(route.chain, node.i));
    parts.push(el("p", { class: "note" }, "None of the circuit's strongest paths runs through "
      + `it. Its best route, judged by its weakest edge (${number(route.width)}), not measured:`),
    el("table", {}, el("tbody", {}, row)));
    return parts;
  }

  function showPanel() {
    const panel = $("neuron");
    const node = state.chosen?.node;
    $("overview").hidden = Boolean(node);
    panel.hidden = !node;
    if (!node) return;
    const label = (text) => el("small", { class: "label" }, text);
    const big = el("div", { class: "big" }, el("div", {}, label("effect through the circuit"),
      effectChip(node)));
    if (finite(node.total_effect)) {
      big.append(el("div", {}, label("total effect"),
        effectChip(node, "total_effect", "total_stderr")));
    }
    big.append(el("div", {}, label("sign"), el("span", {}, SIGNS[node.sign])));
    const hidden = state.nodeOn[node.i] ? null
      : el("p", { class: "note" }, "The filters hide this neuron; it is drawn while selected.");
    const close = el("button", { type: "button", class: "plain", click: clear,
      "aria-label": "Clear the selection" }, "✕");
    const wide = Math.max(240, panel.clientWidth - 34);
    panel.replaceChildren(...[
      el("div", { class: "title-row" }, el("h2", {}, node.label), close),
      el("p", { class: "where" }, where(node)), big, hidden, strip(node, wide),
      facts([...effects(node, false), ...statistics(node, true)]), ...exemplars(node),
      ...throughNeuron(node),
      ...neighbours(node, "ins", "a", "Reads from"),
      ...neighbours(node, "outs", "b", "Writes to")].filter(Boolean));
    panel.parentElement.scrollTop = 0;
  }

  function showCounts({ shownNodes, shownEdges }) {
    $("counts").textContent = `${part(shownNodes, nodes.length)} neurons · `
      + `${part(shownEdges, edges.length)} edges`;
    $("threshold-value").textContent = shown.threshold
      ? `|effect| ${number(shown.threshold)}` : "nothing";
  }

  function showNotes() {
    $("notes").replaceChildren(...data.notes.map((note) => el("li", {}, note)));
    $("notes").hidden = !data.notes.length;
    showAudit();
  }

  function showSummary() {
    const count = (sign) => nodes.filter((node) => node.sign === sign).length;
    const best = (sign) => paths.filter((path) => path.sign === sign)[0];
    const [up, down, zero] = ["positive", "negative", "zero"].map(count);
    const verb = (n) => (n === 1 ? "pushes" : "push");
    let text = data.features.length
      ? `Features that do most to ${target} in total: `
        + `${data.features.map((one) => `${one.name} (${one.estimated ? "≈ " : ""}${effectText(one)})`).join(", ")}. `
      : "";
    text += `${plural(up, "neuron")} ${verb(up)} ${target} up, ${down} ${verb(down)} it down`
      + (zero ? `, of ${zero} what pushes up and down cancels.` : ".");
    for (const [sign, way] of [["positive", "up"], ["negative", "down"]]) {
      const path = best(sign);
      if (path) {
        text += ` The strongest path ${way} starts at ${nodes[path.chain[0]].label} `
          + `(${effectText(path)}).`;
      }
    }
    $("summary").textContent = text;
    showNotes();
    $("subtitle").textContent = `What pushes ${target} up and down: `
      + `${plural(nodes.length, "neuron")}, ${plural(edges.length, "edge")}, `
      + plural(columns.length, "layer");
  }

  // ---------------------------------------------------------------- controls

  const slider = $("threshold");
  const toThreshold = (position) => topEffect * (position / 1000) ** 3; // room for weak effects

  function setThreshold(value) {
    shown.threshold = Math.max(0, value);
    slider.value = String(Math.round(1000 * Math.cbrt(shown.threshold / (topEffect || 1))));
    graph.refilter();
  }

  function toggle(sign) {
    shown[sign] = !shown[sign];
    $(`show-${sign}`).setAttribute("aria-pressed", String(shown[sign]));
    graph.refilter();
  }

  slider.addEventListener("input", () => {
    shown.threshold = toThreshold(Number(slider.value));
    graph.refilter();
  });
  for (const sign of ["positive", "negative"]) {
    $(`show-${sign}`).addEventListener("click", () => toggle(sign));
  }
  kit.searchBox({
    nodes, take: goTo,
    where: (node) => (node.label.startsWith(node.layer + "[") ? null : node.layer),
    chip: (node) => effectChip({ effect: node.effect }),
    none: "No neuron or layer has this in its name.",
  });

  let ready = false;

  window.neurograph = {
    get ready() { return ready; },
    select(layer, index, position) {
      const i = place.get(keyOf(layer, index, position));
      if (i === undefined) return false;
      goTo(nodes[i]);
      return true;
    },
    selection() {
      const { chosen } = state;
      if (!chosen) return null;
      const lit = { nodes: chosen.nodes.size, edges: chosen.edges.size };
      const name = ({ layer, index, label }) => ({ layer, index, name: label });
      return chosen.kind === "neuron" ? { kind: "neuron", ...name(chosen.node), ...lit }
        : { kind: "path", path: chosen.path.chain.map((i) => name(nodes[i])), ...lit };
    },
    visible: () => ({ nodes: state.shownNodes, edges: state.shownEdges }),
    setThreshold,
    position: (layer, index, position) =>
      graph.position(nodes[place.get(keyOf(layer, index, position))]),
  };

  showSummary();
  showPaths();
  $("provenance").replaceChildren(provenance(data.provenance));
  graph.start();
  ready = true;
})();
