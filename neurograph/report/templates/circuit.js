"use strict";
(() => {
  const data = JSON.parse(document.getElementById("circuit-data").textContent);
  const { nodes, edges, columns, target } = data;
  const $ = (id) => document.getElementById(id);
  const stage = $("canvas");
  const MINUS = "\u2212";
  const CRISP_EDGES = 1200; // up to here edges are cheap enough to stroke in every frame
  const BUCKETS = 6; // widths edges are batched into
  const LABELS_CROWDED = 12; // names shown in a crowded column before one zooms in
  const SETTLE_MS = 140; // rest before a moving picture is painted sharply again

  if (!nodes.length) {
    $("subtitle").textContent = "The search kept no neuron.";
    $("summary").textContent = `No neuron was found to push ${target} up or down.`;
    window.neurograph = {
      ready: true, select: () => false, selection: () => null, setThreshold: () => {},
      visible: () => ({ nodes: 0, edges: 0 }), position: () => null,
    };
    return;
  }

  // ---------------------------------------------------------------- numbers and elements

  const finite = (x) => typeof x === "number" && Number.isFinite(x);
  const size = (x) => (finite(x) ? Math.abs(x) : 0);
  const peak = (items) => items.reduce((top, item) => Math.max(top, size(item.effect)), 0);

  function digits(x) {
    return x === 0 ? 2 : Math.min(4, Math.max(2, 1 - Math.floor(Math.log10(Math.abs(x)))));
  }

  function number(x, places) {
    if (!finite(x)) return "–";
    const a = Math.abs(x);
    let text;
    if (a !== 0 && a < 5e-4) text = a.toExponential(1).replace("e-", "e" + MINUS);
    else if (a >= 1e5) text = a.toExponential(2).replace("e+", "e");
    else text = a.toFixed(places ?? (a >= 100 ? 1 : digits(a)));
    return (x < 0 ? MINUS : "") + text;
  }

  function signed(x, places) {
    return finite(x) && x >= 0 ? "+" + number(x, places) : number(x, places);
  }

  function withError(x, stderr) {
    const tiny = size(x) !== 0 && size(x) < 5e-4;
    const places = tiny || size(x) >= 100 ? undefined : digits(x || 0);
    if (!finite(stderr)) return [signed(x, places), ""];
    const visible = stderr === 0 || stderr >= 0.5 * 10 ** -(places ?? 2);
    return [signed(x, places), " ± " + number(stderr, visible ? places : undefined)];
  }

  const effectText = (item) => withError(item.effect, item.stderr).join("");

  function el(tag, attributes, ...children) {
    const made = tag.startsWith("svg:")
      ? document.createElementNS("http://www.w3.org/2000/svg", tag.slice(4))
      : document.createElement(tag);
    for (const [key, value] of Object.entries(attributes ?? {})) {
      if (key === "click") made.addEventListener("click", value);
      else if (value !== false && value != null) made.setAttribute(key, value);
    }
    made.append(...children.filter((child) => child != null)); // strings become text, never HTML
    return made;
  }

  function effectChip(item, key = "effect", error = "stderr") {
    const [value, spread] = withError(item[key], item[error]);
    const sign = size(item[key]) === 0 ? "" : item[key] < 0 ? "negative" : "positive";
    const estimated = key === "effect" ? item.estimated : item.total_estimated;
    const title = estimated ? "estimated, not measured by intervention" : null;
    return el("span", { class: `effect ${sign}`, title }, estimated ? `≈ ${value}` : value,
      el("small", {}, spread));
  }

  // ---------------------------------------------------------------- the graph

  const column = new Map(columns.map((band) => [band.layer, band]));
  const place = new Map();
  const between = new Map();
  const keyOf = (layer, index, position) => JSON.stringify([layer, index, position ?? null]);
  nodes.forEach((node, i) => {
    node.i = i;
    node.ins = [];
    node.outs = [];
    const unnamed = node.label === `${node.layer}[${node.index}]`; // its column names the layer
    const within = node.label.startsWith(node.layer) ? node.label.slice(node.layer.length) : "";
    node.short = unnamed ? String(node.index) : within.trim() || node.label;
    node.hay = `${node.label}\n${node.layer}\n${node.layer}[${node.index}]`.toLowerCase();
    place.set(keyOf(node.layer, node.index, node.position), i);
    (column.get(node.layer).nodes ??= []).push(node);
  });
  for (const band of columns) {
    band.crowded = band.right - band.left > 40;
    band.step = band.nodes.length > 1 ? Math.abs(band.nodes[1].y - band.nodes[0].y) : Infinity;
    [...band.nodes].sort((p, q) => size(q.effect) - size(p.effect) || p.i - q.i)
      .forEach((node, k) => { node.rank = k; });
  }
  const topEdge = peak(edges) || 1;
  const topNode = peak(nodes);
  edges.forEach((edge, e) => {
    edge.e = e;
    edge.a = Number(edge.from);
    edge.b = Number(edge.to);
    edge.weight = Math.sqrt(size(edge.effect) / topEdge);
    edge.bucket = Math.min(BUCKETS - 1, Math.floor(edge.weight * BUCKETS));
    nodes[edge.a].outs.push(e);
    nodes[edge.b].ins.push(e);
    between.set(edge.a * nodes.length + edge.b, e);
  });
  const paths = ["positive", "negative"].flatMap((sign) =>
    data.paths[sign].map((path) => ({ ...path, sign, chain: path.neurons.map(Number) })));
  const topPath = peak(paths) || 1;
  const topEffect = Math.max(peak(edges), topNode);

  const state = {
    threshold: 0, positive: true, negative: true, chosen: null, hover: null,
    nodeOn: new Uint8Array(nodes.length), edgeOn: new Uint8Array(edges.length),
    shownNodes: 0, shownEdges: 0, version: 0, touched: false,
  };

  function refilter() {
    const allowed = (node) => node.sign === "both"
      ? state.positive || state.negative : state[node.sign];
    const open = nodes.map(allowed);
    const linked = new Uint8Array(nodes.length);
    state.shownEdges = 0;
    for (const edge of edges) {
      const on = state[edge.sign === "negative" ? "negative" : "positive"]
        && open[edge.a] && open[edge.b] && size(edge.effect) >= state.threshold;
      state.edgeOn[edge.e] = on ? 1 : 0;
      if (on) linked[edge.a] = linked[edge.b] = 1;
      state.shownEdges += on ? 1 : 0;
    }
    state.shownNodes = 0;
    nodes.forEach((node, i) => { // a neuron stays while an edge that is shown needs it
      const on = open[i] && (linked[i] || size(node.effect) >= state.threshold);
      state.nodeOn[i] = on ? 1 : 0;
      state.shownNodes += on ? 1 : 0;
    });
    state.version += 1;
    if (state.chosen?.kind === "neuron") state.chosen = around(state.chosen.node);
    showCounts();
    repaint();
  }

  /** Everything on a shown path through a neuron, with its distance in edges. */
  function around(node) {
    const found = { kind: "neuron", node, nodes: new Map([[node.i, 0]]), edges: new Map() };
    for (const [links, end] of [["ins", "a"], ["outs", "b"]]) {
      let front = [node.i];
      const seen = new Set(front);
      for (let hops = 1; front.length; hops += 1) {
        const next = [];
        for (const i of front) {
          for (const e of nodes[i][links]) {
            if (!state.edgeOn[e]) continue;
            const j = edges[e][end];
            found.edges.set(e, hops);
            if (seen.has(j)) continue;
            seen.add(j);
            found.nodes.set(j, hops);
            next.push(j);
          }
        }
        front = next;
      }
    }
    return found;
  }

  function along(path) {
    const found = { kind: "path", path, nodes: new Map(), edges: new Map() };
    path.chain.forEach((i, k) => {
      found.nodes.set(i, 0);
      const e = k ? between.get(path.chain[k - 1] * nodes.length + i) : undefined;
      if (e !== undefined) found.edges.set(e, 1);
    });
    return found;
  }

  // ---------------------------------------------------------------- the painter

  const theme = {};

  function readTheme() {
    const style = getComputedStyle(document.documentElement);
    for (const key of ["surface", "band", "ink", "muted", "faint", "line", "pos", "neg",
      "neg-soft"]) {
      theme[key] = style.getPropertyValue("--" + key).trim();
    }
    theme.font = getComputedStyle(document.body).fontFamily;
    state.version += 1;
  }

  function trace(path, edge) {
    const from = nodes[edge.a];
    const to = nodes[edge.b];
    const x0 = from.x + from.size;
    const x1 = to.x - to.size;
    const bend = (x1 - x0) / 2;
    path.moveTo(x0, from.y);
    path.bezierCurveTo(x0 + bend, from.y, x1 - bend, to.y, x1, to.y);
  }

  /** Stroke edges in one go for each sign and width: thousands cost a dozen calls. */
  function strokeEdges(context, chosen, alphaOf, scale) {
    const batches = new Map();
    for (const edge of chosen) {
      const key = edge.bucket * 2 + (edge.sign === "negative" ? 1 : 0);
      if (!batches.has(key)) batches.set(key, new Path2D());
      trace(batches.get(key), edge);
    }
    for (const key of [...batches.keys()].sort((a, b) => a - b)) {
      const level = (key >> 1) / (BUCKETS - 1);
      const negative = key % 2 === 1;
      context.globalAlpha = alphaOf(level);
      context.strokeStyle = negative ? theme.neg : theme.pos;
      context.lineWidth = Math.max(0.8 / scale, 1 + 5 * level);
      const dash = Math.max(5 / scale, context.lineWidth * 2);
      context.setLineDash(negative ? [dash, dash * 0.6] : []);
      context.stroke(batches.get(key));
    }
    context.setLineDash([]);
    context.globalAlpha = 1;
  }

  function paintBase(context, scale) {
    // The more edges, the fainter the weak ones: a haze that the strong ones stand out of.
    const haze = Math.min(0.5, Math.max(0.05, 0.5 * Math.sqrt(200 / (state.shownEdges + 1))));
    const shown = edges.filter((edge) => state.edgeOn[edge.e]);
    strokeEdges(context, shown, (level) => haze + (0.85 - haze) * level ** 1.3, scale);
  }

  const bitmap = { canvas: document.createElement("canvas"), at: null, version: -1 };
  const overview = { canvas: document.createElement("canvas"), at: null, version: -1 };
  let settle = 0;

  function snapshot(picture, width, height, at, painted) {
    picture.canvas.width = width;
    picture.canvas.height = height;
    // Read back in every frame, so it is painted once, here, and not again from a recording.
    const context = picture.canvas.getContext("2d", { willReadFrequently: true });
    context.setTransform(at.a, 0, 0, at.a, at.e, at.f);
    painted(context);
    picture.at = at;
    picture.version = state.version;
  }

  /** Where a picture painted earlier lies now. */
  function placed(picture, now) {
    const k = now.a / picture.at.a;
    return [now.e - picture.at.e * k, now.f - picture.at.f * k,
      picture.canvas.width * k, picture.canvas.height * k];
  }

  /** Paint many edges from a bitmap while the view moves, sharply once it rests. */
  function paintFromBitmap(context, density) {
    const now = context.getTransform();
    const { width, height } = context.canvas;
    const same = bitmap.version === state.version && bitmap.at
      && ["a", "e", "f"].every((key) => Math.abs(bitmap.at[key] - now[key]) < 0.01);
    const scale = now.a / density;
    context.setTransform(1, 0, 0, 1, 0, 0);
    if (!same && (bitmap.version !== state.version || performance.now() > settle)) {
      snapshot(bitmap, width, height, { a: now.a, e: now.e, f: now.f },
        (inner) => paintBase(inner, scale));
    }
    const [x, y, w, h] = placed(bitmap, now);
    if (x > 1 || y > 1 || x + w < width - 1 || y + h < height - 1) {
      if (overview.version !== state.version) paintOverview();
      context.save();
      const outside = new Path2D();
      outside.rect(0, 0, width, height);
      outside.rect(x, y, w, h);
      context.clip(outside, "evenodd");
      context.drawImage(overview.canvas, ...placed(overview, now));
      context.restore();
    }
    context.drawImage(bitmap.canvas, x, y, w, h);
    context.setTransform(now);
    context.globalAlpha = 1;
  }

  function paintOverview() {
    const box = bounds();
    const k = Math.min(1400 / (box.right - box.left), 1400 / (box.bottom - box.top), 2);
    snapshot(overview, Math.ceil((box.right - box.left) * k),
      Math.ceil((box.bottom - box.top) * k), { a: k, e: -box.left * k, f: -box.top * k },
      (inner) => paintBase(inner, k));
  }

  function bounds() {
    const ys = nodes.map((node) => node.y);
    return {
      left: columns[0].left - 10, right: columns[columns.length - 1].right + 10,
      top: ys.reduce((low, y) => Math.min(low, y), 0) - 24,
      bottom: ys.reduce((high, y) => Math.max(high, y), 0) + 24,
    };
  }

  function before(context) {
    const now = context.getTransform();
    const density = now.a / network.getScale();
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.fillStyle = theme.band;
    for (const band of columns) {
      const pad = 12;
      context.fillRect((band.left - pad) * now.a + now.e, 0,
        (band.right - band.left + 2 * pad) * now.a, context.canvas.height);
    }
    context.setTransform(now);
    context.lineCap = "butt";
    context.globalAlpha = state.chosen ? 0.1 : 1;
    if (state.shownEdges > CRISP_EDGES) paintFromBitmap(context, density);
    else if (!state.chosen) paintBase(context, network.getScale());
    else paintFaded(context);
    context.globalAlpha = 1;
    paintChosen(context, network.getScale());
  }

  function paintFaded(context) {
    const rest = edges.filter((edge) => state.edgeOn[edge.e] && !state.chosen.edges.has(edge.e));
    strokeEdges(context, rest, () => 0.07, network.getScale());
  }

  function paintChosen(context, scale) {
    const { chosen, hover } = state;
    if (chosen) {
      const rings = [[], []];
      for (const [e, hops] of chosen.edges) rings[hops === 1 ? 0 : 1].push(edges[e]);
      const crowd = Math.min(1, Math.sqrt(90 / (rings[1].length + 1)));
      strokeEdges(context, rings[1], (level) => 0.1 + 0.32 * crowd + 0.4 * level * level, scale);
      strokeEdges(context, rings[0], (level) => 0.72 + 0.28 * level, scale);
    } else if (hover?.node) {
      const links = [...hover.node.ins, ...hover.node.outs].filter((e) => state.edgeOn[e]);
      strokeEdges(context, links.map((e) => edges[e]), () => 1, scale);
    }
    if (hover?.edge) {
      const thick = { ...hover.edge, bucket: Math.max(2, hover.edge.bucket) };
      strokeEdges(context, [thick], () => 1, scale);
    }
  }

  const isOn = (i) => state.nodeOn[i] || Boolean(state.chosen?.nodes.has(i));
  const faded = (i) => state.chosen !== null && !state.chosen.nodes.has(i);

  function paintNode(context, node, scale) {
    const r = Math.max(node.size, 2.2 / scale);
    const { x, y } = node;
    const disc = (radius, start = 0, end = 2 * Math.PI) => {
      context.beginPath();
      context.arc(x, y, radius, start, end);
    };
    context.globalAlpha = faded(node.i) ? 0.16 : 1;
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
      if (node.sign === "both") disc(r, Math.PI / 2, 1.5 * Math.PI);
      else disc(r);
      context.fillStyle = theme.pos;
      context.fill();
    }
    if (r * scale >= 6 && node.sign !== "both") paintGlyph(context, node, r);
    if (node.target) paintRing(context, node, r + 3.2 / Math.min(1, scale), 1.6 / scale);
    context.globalAlpha = 1;
  }

  function paintGlyph(context, { x, y, sign }, r) {
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

  function paintRing(context, { x, y }, radius, width) {
    context.beginPath();
    context.arc(x, y, radius, 0, 2 * Math.PI);
    context.lineWidth = width;
    context.strokeStyle = theme.ink;
    context.stroke();
  }

  // ---------------------------------------------------------------- labels

  const labels = { key: "", placed: [] };
  const widths = new Map();

  function clipped(text, most) {
    return text.length > most ? text.slice(0, most - 1).trimEnd() + "…" : text;
  }

  function textWidth(context, text) {
    if (!widths.has(text)) widths.set(text, context.measureText(text).width);
    return widths.get(text);
  }

  /** A grid of taken rectangles, in pixels that do not change while panning. */
  function crowd() {
    const cells = new Map();
    const each = ([x0, y0, x1, y1], visit) => {
      for (let i = Math.floor(x0 / 48); i <= Math.floor(x1 / 48); i += 1) {
        for (let j = Math.floor(y0 / 48); j <= Math.floor(y1 / 48); j += 1) {
          if (visit(i * 100003 + j)) return true;
        }
      }
      return false;
    };
    return {
      take: (box) => each(box, (cell) => {
        if (!cells.has(cell)) cells.set(cell, []);
        cells.get(cell).push(box);
        return false;
      }),
      free: (box) => !each(box, (cell) => (cells.get(cell) ?? []).some((other) =>
        box[0] < other[2] && other[0] < box[2] && box[1] < other[3] && other[1] < box[3])),
    };
  }

  function labelOrder(k) {
    const { chosen, hover } = state;
    const near = (node) => {
      if (node === hover?.node || node === chosen?.node) return 0;
      if (!chosen) return 2;
      return chosen.kind === "path" || chosen.nodes.get(node.i) === 1 ? 1 : 2;
    };
    // Names in a crowded column cannot all be read: only the strongest, until one zooms in.
    const quiet = (node) => k < 2.4 && column.get(node.layer).crowded
      && node.rank >= LABELS_CROWDED && near(node) === 2;
    return nodes.filter((node) => isOn(node.i) && (!faded(node.i) || node === hover?.node))
      .filter((node) => !quiet(node))
      .map((node) => ({ node, near: near(node) }))
      .sort((p, q) => p.near - q.near || size(q.node.effect) - size(p.node.effect)
        || p.node.i - q.node.i);
  }

  function boxOf(side, node, k, width) {
    const x = node.x * k;
    const y = node.y * k;
    const r = Math.max(node.size * k, 2.2) + (node.target ? 4 : 0)
      + (node === state.chosen?.node ? 5 : 0);
    if (side === "left") return [x - r - 5 - width, y - 7, x - r - 5, y + 7];
    if (side === "right") return [x + r + 5, y - 7, x + r + 5 + width, y + 7];
    if (side === "above") return [x - width / 2, y - r - 16, x + width / 2, y - r - 3];
    return [x - width / 2, y + r + 3, x + width / 2, y + r + 16];
  }

  /** Where a name may go: edges leave sideways, so inside the graph below comes first. */
  function sidesOf(node, k) {
    const { crowded, step } = column.get(node.layer);
    if (crowded) return ["right", "left", "above", "below"];
    if (!node.ins.length && node.layer === columns[0].layer) return ["left"];
    if (node.layer === columns[columns.length - 1].layer) return ["right"];
    return step * k < 31 ? ["right"] : ["below", "right"]; // too close: whose name would it be?
  }

  function placeLabels(context, k) {
    const taken = crowd();
    for (const node of nodes) {
      const r = Math.max(node.size * k, 2.2);
      if (isOn(node.i)) {
        taken.take([node.x * k - r, node.y * k - r, node.x * k + r, node.y * k + r]);
      }
    }
    labels.placed = [];
    for (const { node, near } of labelOrder(k)) {
      const text = clipped(node.short, near === 0 ? 40 : 24);
      const width = textWidth(context, text);
      const sides = sidesOf(node, k);
      const boxes = sides.map((side) => boxOf(side, node, k, width));
      const found = boxes.findIndex(taken.free);
      if (found < 0 && near > 0) continue;
      const box = boxes[Math.max(0, found)];
      taken.take(box);
      const beside = /left|right/.test(sides[Math.max(0, found)]);
      labels.placed.push({ text, box, near, chip: beside && node.ins.length + node.outs.length });
    }
  }

  function paintLabels(context, now, density) {
    const k = now.a / density;
    context.setTransform(density, 0, 0, density, now.e, now.f);
    context.font = `12px ${theme.font}`;
    context.textBaseline = "middle";
    context.textAlign = "left";
    context.lineJoin = "round";
    const key = `${k}|${state.version}|${state.chosen?.stamp}|${state.hover?.node?.i}`;
    if (key !== labels.key) {
      labels.key = key;
      placeLabels(context, k);
    }
    const [left, top] = [-now.e / density, -now.f / density];
    const [right, bottom] = [left + stage.clientWidth, top + stage.clientHeight];
    for (const { text, box, near, chip } of [...labels.placed].reverse()) {
      if (box[2] < left || box[0] > right || box[3] < top || box[1] > bottom) continue;
      const strong = near === 0 || (near === 1 && state.chosen?.kind === "path");
      context.font = `${strong ? "600 " : ""}12px ${theme.font}`;
      if (chip) { // else the stub of an edge beside a number reads as a minus
        context.fillStyle = theme.surface;
        context.fillRect(box[0] - 4.5, box[1] + 1, box[2] - box[0] + 8, 12);
      }
      context.lineWidth = 3.5;
      context.strokeStyle = theme.surface;
      context.strokeText(text, box[0], (box[1] + box[3]) / 2);
      context.fillStyle = theme.ink;
      context.fillText(text, box[0], (box[1] + box[3]) / 2);
    }
    context.setTransform(now);
  }

  function after(context) {
    const now = context.getTransform();
    const scale = network.getScale();
    const marked = state.chosen?.node;
    if (marked) {
      const r = Math.max(marked.size, 2.2 / scale);
      paintRing(context, marked, r + (marked.target ? 7 : 4) / Math.min(1, scale), 2.4 / scale);
    }
    if (state.hover?.node && state.hover.node !== marked) {
      paintRing(context, state.hover.node, Math.max(state.hover.node.size, 2.2 / scale)
        + 3 / scale, 1.5 / scale);
    }
    paintLabels(context, now, now.a / scale);
    moveHeaders();
  }

  // ---------------------------------------------------------------- column headers

  const heads = columns.map((band) => {
    const [name, count] = [el("b"), el("span")];
    const head = el("div", {}, name, count);
    $("columns").append(head);
    const total = finite(band.neurons) ? ` / ${band.neurons.toLocaleString("en")}` : "";
    const kept = `${band.kept.toLocaleString("en")}${total}`;
    const type = band.type && band.type !== band.layer ? `${band.type} · ` : "";
    return { band, head, name, count, center: (band.left + band.right) / 2,
      texts: [`${type}${kept} kept`, `${kept} kept`, kept] };
  });

  const words = new Map(); // how many columns' paths hold each word
  for (const { layer } of columns) {
    for (const word of new Set(layer.split("."))) words.set(word, (words.get(word) ?? 0) + 1);
  }

  /** A module's path without what most paths share; numbers, rare words and its end stay. */
  function shortened(layer, most) {
    const parts = layer.split(".");
    while (parts.join(".").length > most) {
      const inner = parts.slice(0, -1).filter((part) => !/^\d+$/.test(part));
      if (!inner.length) break;
      const often = (part) => words.get(part) ?? 0; // 0: begun already
      const commonest = inner.reduce((a, b) => (often(b) > often(a) ? b : a));
      const rare = often(commonest) && often(commonest) < columns.length;
      const begun = rare && commonest.length > 4 ? [commonest.slice(0, 4)] : [];
      parts.splice(parts.indexOf(commonest), 1, ...begun);
    }
    const text = parts.join(".");
    if (text.length <= most) return text;
    const numbers = parts.slice(0, -1).join(".");
    const room = Math.max(2, most - numbers.length - 1);
    return `${numbers}…${text.slice(-room)}`;
  }

  const longest = columns.reduce((most, { layer }) => Math.max(most, layer.length), 0);
  const headRoom = Math.min(160, 22 + 7.6 * longest); // height of names written downwards

  function moveHeaders() {
    const at = heads.map(({ center }) => network.canvasToDOM({ x: center, y: 0 }).x);
    const gaps = at.slice(1).map((x, k) => x - at[k]);
    const tall = Math.min(...gaps, 260) < 62;
    $("columns").classList.toggle("tall", tall);
    $("columns").style.height = tall ? `${headRoom}px` : "";
    heads.forEach(({ band, head, name, count, texts }, k) => {
      const room = Math.min(gaps[k - 1] ?? 260, gaps[k] ?? 260, 260) - 6;
      const width = tall ? 20 : room;
      const letters = Math.max(4, Math.floor((tall ? headRoom - 14 : width - 8) / 7.4));
      const text = shortened(band.layer, letters);
      const below = tall ? "" : texts.find((line) => line.length * 6.1 < width) ?? texts[2];
      if (name.textContent !== text) name.textContent = text;
      if (count.textContent !== below) count.textContent = below;
      head.style.width = `${width}px`;
      head.style.transform = `translateX(${at[k] - width / 2}px)`;
    });
  }

  // ---------------------------------------------------------------- the view

  const renderer = ({ ctx, id }) => ({
    drawNode() {
      if (isOn(Number(id))) paintNode(ctx, nodes[Number(id)], network.getScale());
    },
    nodeDimensions: { width: 2 * nodes[Number(id)].size, height: 2 * nodes[Number(id)].size },
  });
  let ready = false;
  const network = new vis.Network(stage, {
    // No edges for vis: it would paint them one by one in every frame.
    nodes: nodes.map(({ id, x, y, size: radius }) => (
      { id, x, y, size: radius, shape: "custom", ctxRenderer: renderer })),
    edges: [],
  }, {
    physics: false, layout: { improvedLayout: false },
    interaction: { dragNodes: false, selectable: false, hover: false, zoomSpeed: 0.7 },
  });

  stage.firstElementChild.tabIndex = -1; // the stage itself is the one stop for the keyboard

  let frame = 0;
  let rest = 0;

  function repaint() {
    if (!ready || frame) return;
    frame = requestAnimationFrame(() => {
      frame = 0;
      network.redraw();
    });
  }

  function moving() {
    state.touched = true;
    settle = performance.now() + SETTLE_MS;
    clearTimeout(rest);
    rest = setTimeout(repaint, SETTLE_MS + 10);
    hideTip();
  }

  function fit() {
    const box = bounds();
    const [width, height] = [stage.clientWidth, stage.clientHeight];
    const names = columns[0].nodes.map((node) => clipped(node.short, 24).length * 6.6);
        const wide = names.reduce((most, name) => Math.max(most, name), 0) + 14;
    const left = Math.min(columns[0].crowded ? 90 : 170, wide);
    const tall = width / columns.length < 80;
    const right = clipped(target, 24).length * 7 + 24;
    const [top, bottom] = [tall ? headRoom + 20 : 74, 46];
    const scale = Math.max(0.02, Math.min(1.7, (width - left - right) / (box.right - box.left),
      (height - top - bottom) / (box.bottom - box.top)));
    network.moveTo({
      scale,
      position: {
        x: (box.left + box.right) / 2 + (width / 2 - (left + (width - left - right) / 2)) / scale,
        y: (box.top + box.bottom) / 2 + (height / 2 - (top + (height - top - bottom) / 2)) / scale,
      },
    });
    repaint();
  }

  function zoom(factor) {
    moving();
    network.moveTo({ scale: Math.min(8, Math.max(0.02, network.getScale() * factor)) });
  }

  function bringIntoView(node) {
    const at = network.canvasToDOM({ x: node.x, y: node.y });
    const inside = at.x > 40 && at.x < stage.clientWidth - 40 && at.y > 80
      && at.y < stage.clientHeight - 60;
    if (!inside) network.moveTo({ position: { x: node.x, y: node.y } });
  }

  function nodeAt(point) {
    const scale = network.getScale();
    const at = network.DOMtoCanvas(point);
    let best = null;
    let least = Infinity;
    for (const node of nodes) {
      const gap = Math.hypot(node.x - at.x, node.y - at.y) - Math.max(node.size, 7 / scale);
      if (gap <= 0 && gap < least && isOn(node.i)) [best, least] = [node, gap];
    }
    return best;
  }

  function edgeAt(point) {
    const at = network.DOMtoCanvas(point);
    const reach = 5 / network.getScale();
    let best = null;
    let least = reach;
    for (const edge of edges) {
      if (state.chosen ? !state.chosen.edges.has(edge.e) : !state.edgeOn[edge.e]) continue;
      const from = nodes[edge.a];
      const to = nodes[edge.b];
      const u = (at.x - from.x - from.size) / (to.x - to.size - from.x - from.size);
      if (u <= 0 || u >= 1) continue;
      if (at.y < Math.min(from.y, to.y) - reach || at.y > Math.max(from.y, to.y) + reach) continue;
      let [low, high] = [0, 1]; // the curve's x grows with its parameter: halve until it meets u
      for (let k = 0; k < 14; k += 1) {
        const t = (low + high) / 2;
        if (1.5 * t * (1 - t) + t ** 3 < u) low = t;
        else high = t;
      }
      const gap = Math.abs(from.y + (to.y - from.y) * (3 - 2 * low) * low * low - at.y);
      if (gap < least) [best, least] = [edge, gap];
    }
    return best;
  }

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
    both: "± up and down" };

  function where(node) {
    const { type } = column.get(node.layer);
    const token = node.token === undefined ? "" : ` “${node.token}”`;
    return `${node.layer} · neuron ${node.index}`
      + (node.position === undefined ? "" : ` · position ${node.position}${token}`)
      + (type && type !== node.layer ? ` · ${type}` : "")
      + (node.target ? ` · read by ${target}` : "");
  }

  function facts(pairs) {
    const list = el("dl", { class: "facts" });
    for (const [name, value] of pairs) {
      if (value != null) list.append(el("dt", {}, name), el("dd", {}, value));
    }
    return list;
  }

  function statistics(node, full) {
    const some = (key, value) => (finite(node[key]) ? value : null);
    const range = (low, high) => (finite(node[low]) && finite(node[high])
      ? `${number(node[low])} … ${number(node[high])}` : null);
    return [
      ["mean ± std", some("mean", `${number(node.mean)} ± ${number(node.std)}`)],
      ["median", full ? some("q50", number(node.q50)) : null],
      ["middle half", full ? range("q25", "q75") : null],
      ["5 % … 95 %", range("q5", "q95")],
      ["least … most", full ? range("min", "max") : null],
      ["values", full ? some("count", (node.count ?? 0).toLocaleString("en")) : null],
      ["cut", node.cut],
      ["mean after the cut", some("mean_after",
        `${number(node.mean_after)} (${number(node.mean_before)} before)`)],
      ["moved by the cut", some("wasserstein_std", `${number(node.wasserstein_std)} std`)],
    ];
  }

  function showTip(hover, point) {
    const tip = $("tip");
    tip.classList.toggle("slim", !hover.node);
    if (hover.node) {
      const { node } = hover;
      tip.replaceChildren(...[el("h3", {}, node.label), el("p", { class: "where" }, where(node)),
        facts([["effect", effectChip(node)],
          ["total effect", finite(node.total_effect)
            ? effectChip(node, "total_effect", "total_stderr") : null],
          ["sign", SIGNS[node.sign]], ...statistics(node, false)]), strip(node)].filter(Boolean));
    } else {
      const { edge } = hover;
      tip.replaceChildren(el("h3", {}, `${nodes[edge.a].label} → ${nodes[edge.b].label}`),
        facts([["effect of the edge", effectChip(edge)]]));
    }
    tip.hidden = false;
    const [width, height] = [tip.offsetWidth, tip.offsetHeight];
    const x = point.x + 20 + width > stage.clientWidth ? point.x - width - 20 : point.x + 20;
    const y = Math.min(point.y + 12, stage.clientHeight - height - 8);
    tip.style.transform = `translate(${Math.max(4, x)}px, ${Math.max(4, y)}px)`;
  }

  function hideTip() {
    $("tip").hidden = true;
  }

  function hoverAt(point) {
    const node = nodeAt(point);
    const edge = node ? null : edgeAt(point);
    const changed = node !== (state.hover?.node ?? null) || edge !== (state.hover?.edge ?? null);
    state.hover = node || edge ? { node, edge } : null;
    stage.classList.toggle("over", Boolean(node));
    if (state.hover && (!node || node !== state.chosen?.node)) showTip(state.hover, point);
    else hideTip();
    if (changed) repaint();
  }

  // ---------------------------------------------------------------- choosing

  let stamps = 0;

  function choose(found, spoken) {
    state.chosen = found;
    if (found) found.stamp = stamps += 1;
    $("live").textContent = spoken;
    showPanel();
    showPaths();
    repaint();
  }

  function chooseNode(node) {
    const found = around(node);
    const before = node.ins.length;
    choose(found, `${node.label}, layer ${node.layer}, effect ${effectText(node)}, `
      + `${SIGNS[node.sign].slice(2)}, ${before} edges in, ${node.outs.length} out.`);
  }

  function choosePath(path) {
    choose(along(path), `Path ${path.chain.map((i) => nodes[i].label).join(", ")}, `
      + `effect ${effectText(path)}.`);
  }

  function clear() {
    if (state.chosen) choose(null, "Selection cleared.");
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

  function table(heads3, rows) {
    return el("table", {},
      el("thead", {}, el("tr", {}, ...heads3.map((head) => el("th", { scope: "col" }, head)))),
      el("tbody", {}, ...rows));
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
    const found = node[links].map((e) => edges[e])
      .sort((p, q) => size(q.effect) - size(p.effect) || p.e - q.e);
    if (!found.length) return [];
    const rows = found.slice(0, 5).map((edge) => el("tr", {
      class: edge.sign, click: () => goTo(nodes[edge[end]]) },
    el("td", { class: "value" }, el("button", { type: "button" }, effectChip(edge))),
    el("td", { class: "route" }, nodes[edge[end]].label)));
    const rest3 = found.length > 5 ? ` strongest 5 of ${found.length}` : ` ${found.length}`;
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
    const big = el("div", { class: "big" }, el("div", {}, label("effect"), effectChip(node)));
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
      facts(statistics(node, true)), ...throughNeuron(node),
      ...neighbours(node, "ins", "a", "Reads from"),
      ...neighbours(node, "outs", "b", "Writes to")].filter(Boolean));
    panel.parentElement.scrollTop = 0;
  }

  function showCounts() {
    const many = (x) => x.toLocaleString("en");
    const part = (shown, all) => (shown === all ? many(all) : `${many(shown)} of ${many(all)}`);
    $("counts").textContent = `${part(state.shownNodes, nodes.length)} neurons · `
      + `${part(state.shownEdges, edges.length)} edges`;
    $("threshold-value").textContent = state.threshold
      ? `|effect| ${number(state.threshold)}` : "nothing";
  }

  function plural(count, word) {
    return `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;
  }

  function showSummary() {
    const count = (sign) => nodes.filter((node) => node.sign === sign).length;
    const best = (sign) => paths.filter((path) => path.sign === sign)[0];
    const [up, down, both] = ["positive", "negative", "both"].map(count);
    const verb = (n) => (n === 1 ? "pushes" : "push");
    let text = `${plural(up, "neuron")} ${verb(up)} ${target} up, ${down} ${verb(down)} it down`
      + (both ? `, ${both} ${both === 1 ? "does" : "do"} both.` : ".");
    for (const [sign, way] of [["positive", "up"], ["negative", "down"]]) {
      const path = best(sign);
      if (path) {
        text += ` The strongest path ${way} starts at ${nodes[path.chain[0]].label} `
          + `(${effectText(path)}).`;
      }
    }
    $("summary").textContent = text;
    $("subtitle").textContent = `What pushes ${target} up and down: `
      + `${plural(nodes.length, "neuron")}, ${plural(edges.length, "edge")}, `
      + plural(columns.length, "layer");
  }

  function provenance(value) {
    const list = el("dl");
    for (const [key, item] of Object.entries(value ?? {})) {
      if (item !== null && typeof item === "object" && !Array.isArray(item)) {
        list.append(el("dt", { class: "group" }, key), provenance(item));
        continue;
      }
      const text = Array.isArray(item) ? item.map((part) => (typeof part === "object"
        ? JSON.stringify(part) : String(part))).join(", ") : String(item ?? "–");
      list.append(el("dt", {}, key), el("dd", {}, text));
    }
    return list;
  }

  // ---------------------------------------------------------------- controls

  const slider = $("threshold");
  const toThreshold = (position) => topEffect * (position / 1000) ** 3; // room for weak effects

  function setThreshold(value) {
    state.threshold = Math.max(0, value);
    slider.value = String(Math.round(1000 * Math.cbrt(state.threshold / (topEffect || 1))));
    refilter();
  }

  function goTo(node) {
    bringIntoView(node);
    chooseNode(node);
  }

  const search = { hits: [], at: 0 };

  function hitItem(node, k) {
    const item = el("li", { role: "option", id: `hit-${k}`, "aria-selected": "false" },
      el("span", { class: "name" }, node.label,
        node.label.startsWith(node.layer + "[") ? null : el("small", {}, node.layer)),
      effectChip({ effect: node.effect }));
    item.addEventListener("mousedown", (event) => { // before the box loses focus and closes
      event.preventDefault();
      search.at = k;
      takeHit();
    });
    return item;
  }

  function findHits() {
    const wanted = $("search").value.trim().toLowerCase();
    const first = (node) => (node.label.toLowerCase().startsWith(wanted) ? 0 : 1);
    search.hits = wanted === "" ? [] : nodes.filter((node) => node.hay.includes(wanted))
      .sort((p, q) => first(p) - first(q) || size(q.effect) - size(p.effect) || p.i - q.i)
      .slice(0, 50);
    search.at = 0;
    const none = el("li", { class: "none" }, "No neuron or layer has this in its name.");
    $("hits").replaceChildren(...(search.hits.length ? search.hits.map(hitItem) : [none]));
    openHits(wanted !== "");
  }

  function openHits(open) {
    $("hits").hidden = !open;
    $("search").setAttribute("aria-expanded", String(open));
    markHit();
  }

  function markHit() {
    [...$("hits").children].forEach((item, k) => {
      if (search.hits.length) item.setAttribute("aria-selected", String(k === search.at));
      if (k === search.at) item.scrollIntoView({ block: "nearest" });
    });
    if (search.hits.length && !$("hits").hidden) {
      $("search").setAttribute("aria-activedescendant", `hit-${search.at}`);
    } else $("search").removeAttribute("aria-activedescendant");
  }

  function takeHit() {
    const node = search.hits[search.at];
    if (!node) return;
    goTo(node);
    openHits(false);
  }

  function searchKey(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step && search.hits.length) {
      event.preventDefault();
      if (!$("hits").hidden) {
        search.at = (search.at + step + search.hits.length) % search.hits.length;
      }
      openHits(true);
    } else if (event.key === "Enter") takeHit();
    else if (event.key === "Escape") {
      event.stopPropagation();
      if ($("hits").hidden) $("search").blur();
      openHits(false);
    }
  }

  /** The neuron an arrow key leads to: along the column, or over the strongest edge. */
  function stepFrom(node, key) {
    if (!node) {
      return nodes.filter((other) => state.nodeOn[other.i])
        .sort((p, q) => size(q.effect) - size(p.effect) || p.i - q.i)[0];
    }
    if (key === "ArrowUp" || key === "ArrowDown") {
      const near = column.get(node.layer).nodes.filter((other) => isOn(other.i));
      return near[near.indexOf(node) + (key === "ArrowUp" ? -1 : 1)];
    }
    const [links, end] = key === "ArrowLeft" ? ["ins", "a"] : ["outs", "b"];
    const open = node[links].filter((e) => state.edgeOn[e])
      .sort((p, q) => size(edges[q].effect) - size(edges[p].effect) || p - q);
    return open.length ? nodes[edges[open[0]][end]] : undefined;
  }

  function graphKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key.startsWith("Arrow")) {
      const next = stepFrom(state.chosen?.node, event.key);
      if (next) goTo(next);
      event.preventDefault();
    } else if (event.key === "+" || event.key === "=") zoom(1.25);
    else if (event.key === "-") zoom(0.8);
    else if (event.key === "0") fit();
  }

  function pageKey(event) {
    if (event.key === "Escape") clear();
    const typing = /^(input|textarea|select)$/i.test(event.target.tagName ?? "");
    if (event.key === "/" && !typing) {
      event.preventDefault();
      $("search").focus();
      $("search").select();
    }
  }

  function toggle(sign) {
    state[sign] = !state[sign];
    $(`show-${sign}`).setAttribute("aria-pressed", String(state[sign]));
    refilter();
  }

  function listen() {
    network.on("beforeDrawing", before);
    network.on("afterDrawing", after);
    for (const event of ["dragStart", "dragging", "dragEnd", "zoom"]) network.on(event, moving);
    network.on("click", ({ pointer }) => {
      const node = nodeAt(pointer.DOM);
      if (node) chooseNode(node);
      else clear();
    });
    stage.addEventListener("mousemove", (event) => {
      if (event.buttons) return;
      const box = stage.getBoundingClientRect();
      hoverAt({ x: event.clientX - box.left, y: event.clientY - box.top });
    });
    stage.addEventListener("mouseleave", () => {
      state.hover = null;
      hideTip();
      repaint();
    });
    stage.addEventListener("keydown", graphKey);
    document.addEventListener("keydown", pageKey);
    slider.addEventListener("input", () => {
      state.threshold = toThreshold(Number(slider.value));
      refilter();
    });
    for (const sign of ["positive", "negative"]) {
      $(`show-${sign}`).addEventListener("click", () => toggle(sign));
    }
    $("search").addEventListener("input", findHits);
    $("search").addEventListener("keydown", searchKey);
    $("search").addEventListener("blur", () => openHits(false));
    $("zoom-in").addEventListener("click", () => zoom(1.25));
    $("zoom-out").addEventListener("click", () => zoom(0.8));
    $("fit").addEventListener("click", fit);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
      readTheme();
      repaint();
    });
    new ResizeObserver(() => requestAnimationFrame(() => (state.touched ? repaint() : fit())))
      .observe(stage);
  }

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
    position(layer, index, position) { // in pixels, where a pointer would have to be
      const node = nodes[place.get(keyOf(layer, index, position))];
      const at = network.canvasToDOM({ x: node.x, y: node.y });
      const box = stage.getBoundingClientRect();
      return { x: at.x + box.left, y: at.y + box.top };
    },
  };

  readTheme();
  listen();
  showSummary();
  showPaths();
  $("provenance").replaceChildren(provenance(data.provenance));
  ready = true;
  refilter();
  fit();
})();
