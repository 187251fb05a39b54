"use strict";
/** A graph of neurons in columns: filters, choosing, pointer and keys; shared by the pages.
 *
 * Nodes and edges come with `strength`, edges with `kind`, an index of `kinds`, columns with
 * `texts`. `shows` says what the page's own filters let through, `paintNode` draws one neuron,
 * `tip` writes what a pointer rests on; `chosen`, `filtered` and `speak` hear of changes;
 * `takeEdge`, if given, is handed the edges that are clicked.
 */
kit.graph = ({ nodes, edges, columns, kinds, colours, lastLabel, shows, paintNode, tip, chosen,
  filtered, speak, takeEdge }) => {
  const { $ } = kit;
  const stage = $("canvas");
  const column = new Map(columns.map((band) => [band.layer, band]));
  const between = new Map();
  nodes.forEach((node, i) => {
    node.i = i;
    node.ins = [];
    node.outs = [];
    (column.get(node.layer).nodes ??= []).push(node);
  });
  for (const band of columns) {
    band.crowded = band.right - band.left > 40;
    band.step = band.nodes.length > 1 ? Math.abs(band.nodes[1].y - band.nodes[0].y) : Infinity;
    [...band.nodes].sort((p, q) => q.strength - p.strength || p.i - q.i)
      .forEach((node, k) => { node.rank = k; });
  }
  edges.forEach((edge, e) => {
    edge.e = e;
    edge.a = Number(edge.from);
    edge.b = Number(edge.to);
    nodes[edge.a].outs.push(e);
    nodes[edge.b].ins.push(e);
    between.set(edge.a * nodes.length + edge.b, e);
  });

  const state = {
    chosen: null, hover: null, version: 0, touched: false,
    nodeOn: new Uint8Array(nodes.length), edgeOn: new Uint8Array(edges.length),
    shownNodes: 0, shownEdges: 0,
  };

  function refilter() {
    const linked = new Uint8Array(nodes.length);
    state.shownEdges = 0;
    for (const edge of edges) {
      const on = shows.edge(edge);
      state.edgeOn[edge.e] = on ? 1 : 0;
      if (on) linked[edge.a] = linked[edge.b] = 1;
      state.shownEdges += on ? 1 : 0;
    }
    state.shownNodes = 0;
    nodes.forEach((node, i) => { // a neuron stays while an edge that is shown needs it
      const on = linked[i] || shows.node(node);
      state.nodeOn[i] = on ? 1 : 0;
      state.shownNodes += on ? 1 : 0;
    });
    state.version += 1;
    if (state.chosen?.kind === "neuron") state.chosen = around(state.chosen.node);
    filtered(state);
    repaint();
  }

  /** Everything on a shown path through a neuron, with its distance in edges. */
  function around(node) {
    const selected = { kind: "neuron", node, nodes: new Map([[node.i, 0]]), edges: new Map() };
    for (const [links, end] of [["ins", "a"], ["outs", "b"]]) {
      let front = [node.i];
      const seen = new Set(front);
      for (let hops = 1; front.length; hops += 1) {
        const next = [];
        for (const i of front) {
          for (const e of nodes[i][links]) {
            if (!state.edgeOn[e]) continue;
            const j = edges[e][end];
            selected.edges.set(e, hops);
            if (seen.has(j)) continue;
            seen.add(j);
            selected.nodes.set(j, hops);
            next.push(j);
          }
        }
        front = next;
      }
    }
    return selected;
  }

  function ends(edge) {
    return { kind: "edge", edge, nodes: new Map([[edge.a, 0], [edge.b, 0]]),
      edges: new Map([[edge.e, 1]]) };
  }

  function along(path) {
    const selected = { kind: "path", path, nodes: new Map(), edges: new Map() };
    path.chain.forEach((i, k) => {
      if (i === null) return;
      selected.nodes.set(i, 0);
      const e = k ? between.get(path.chain[k - 1] * nodes.length + i) : undefined;
      if (e !== undefined) selected.edges.set(e, 1);
    });
    return selected;
  }

  // ---------------------------------------------------------------- the painter

  const theme = {};

  function readTheme() {
    const style = getComputedStyle(document.documentElement);
    for (const key of ["surface", "band", "ink", "muted", "faint", "line", ...colours]) {
      theme[key] = style.getPropertyValue("--" + key).trim();
    }
    theme.font = getComputedStyle(document.body).fontFamily;
    state.version += 1;
  }

  const isOn = (i) => state.nodeOn[i] || Boolean(state.chosen?.nodes.has(i));
  const faded = (i) => state.chosen !== null && !state.chosen.nodes.has(i);

  function bounds() {
    const ys = nodes.map((node) => node.y);
    return {
      left: columns[0].left - 10, right: columns[columns.length - 1].right + 10,
      top: ys.reduce((low, y) => Math.min(low, y), 0) - 24,
      bottom: ys.reduce((high, y) => Math.max(high, y), 0) + 24,
    };
  }

  function paintRing(context, { x, y }, radius, width) {
    context.beginPath();
    context.arc(x, y, radius, 0, 2 * Math.PI);
    context.lineWidth = width;
    context.strokeStyle = theme.ink;
    context.stroke();
  }

  function drawNode(context, node) {
    const scale = network.getScale();
    const r = Math.max(node.size, 2.2 / scale);
    context.globalAlpha = faded(node.i) ? 0.16 : 1;
    paintNode(context, node, r, scale, theme);
    if (node.target) paintRing(context, node, r + 3.2 / Math.min(1, scale), 1.6 / scale);
    context.globalAlpha = 1;
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
    painter.paint(context, density);
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
    labels.paint(context, now, now.a / scale);
    headers.move(network);
  }

  // ---------------------------------------------------------------- the view

  const renderer = ({ ctx, id }) => ({
    drawNode() {
      if (isOn(Number(id))) drawNode(ctx, nodes[Number(id)]);
    },
    nodeDimensions: { width: 2 * nodes[Number(id)].size, height: 2 * nodes[Number(id)].size },
  });
  let ready = false;
  const network = new vis.Network(stage, {
    // No edges for vis: it would paint them one by one in every frame.
    nodes: nodes.map(({ id, x, y, size }) => (
      { id, x, y, size, shape: "custom", ctxRenderer: renderer })),
    edges: [],
  }, {
    physics: false, layout: { improvedLayout: false },
    interaction: { dragNodes: false, selectable: false, hover: false, zoomSpeed: 0.7 },
  });
  const shared = { nodes, edges, columns, column, kinds, theme, state, stage, isOn, faded, bounds };
  const painter = kit.edgePainter({ ...shared, scaleOf: () => network.getScale() });
  const labels = kit.labels(shared);
  const headers = kit.headers(shared);

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
    clearTimeout(rest);
    rest = setTimeout(repaint, painter.moving());
    hideTip();
  }

  function fit() {
    const box = bounds();
    const [width, height] = [stage.clientWidth, stage.clientHeight];
    const names = columns[0].nodes.map((node) => kit.clipped(node.short, 24).length * 6.6);
    const wide = names.reduce((most, name) => Math.max(most, name), 0) + 14;
    const left = Math.min(columns[0].crowded ? 90 : 170, wide);
    const tall = width / columns.length < 80;
    const right = kit.clipped(lastLabel, 24).length * 7 + 24;
    const [top, bottom] = [tall ? headers.room + 20 : 74, 46];
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

  // ---------------------------------------------------------------- pointer

  function showTip(hover, point) {
    const box = $("tip");
    box.classList.toggle("slim", !hover.node);
    box.replaceChildren(...tip(hover).filter(Boolean));
    box.hidden = false;
    const [width, height] = [box.offsetWidth, box.offsetHeight];
    const x = point.x + 20 + width > stage.clientWidth ? point.x - width - 20 : point.x + 20;
    const y = Math.min(point.y + 12, stage.clientHeight - height - 8);
    box.style.transform = `translate(${Math.max(4, x)}px, ${Math.max(4, y)}px)`;
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

  function choose(selected, spoken) {
    state.chosen = selected;
    if (selected) selected.stamp = stamps += 1;
    $("live").textContent = spoken;
    chosen(selected);
    repaint();
  }

  function clear() {
    if (state.chosen) choose(null, "Selection cleared.");
  }

  function goTo(node) {
    bringIntoView(node);
    choose(around(node), speak(node));
  }

  // ---------------------------------------------------------------- keys

  /** The neuron an arrow key leads to: along the column, or over the strongest edge. */
  function stepFrom(node, key) {
    if (!node) {
      return nodes.filter((other) => state.nodeOn[other.i])
        .sort((p, q) => q.strength - p.strength || p.i - q.i)[0];
    }
    if (key === "ArrowUp" || key === "ArrowDown") {
      const near = column.get(node.layer).nodes.filter((other) => isOn(other.i));
      return near[near.indexOf(node) + (key === "ArrowUp" ? -1 : 1)];
    }
    const [links, end] = key === "ArrowLeft" ? ["ins", "a"] : ["outs", "b"];
    const open = node[links].filter((e) => state.edgeOn[e])
      .sort((p, q) => edges[q].strength - edges[p].strength || p - q);
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

  function listen() {
    network.on("beforeDrawing", before);
    network.on("afterDrawing", after);
    for (const event of ["dragStart", "dragging", "dragEnd", "zoom"]) network.on(event, moving);
    network.on("click", ({ pointer }) => {
      const node = nodeAt(pointer.DOM);
      const edge = node || !takeEdge ? null : edgeAt(pointer.DOM);
      if (node) choose(around(node), speak(node));
      else if (edge) takeEdge(edge);
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
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape") clear();
    });
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

  return {
    state, along, ends, choose, clear, goTo, refilter, bringIntoView,
    start() {
      readTheme();
      listen();
      ready = true;
      refilter();
      fit();
    },
    /** Where a pointer would have to be, in pixels of the window. */
    position(node) {
      const at = network.canvasToDOM({ x: node.x, y: node.y });
      const box = stage.getBoundingClientRect();
      return { x: at.x + box.left, y: at.y + box.top };
    },
  };
};
