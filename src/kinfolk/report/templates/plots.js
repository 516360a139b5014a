// Draws the figures by the reader's choices: axes, units, curves, how much of an axis, and the theme's colours.
(() => {
  "use strict";
  const root = document.documentElement;
  const read = (id) => JSON.parse(document.getElementById(id)?.textContent || "{}");
  let data = read("plots");
  let columns = read("columns");
  const narrow = matchMedia("(max-width: 40rem)");
  const coarse = matchMedia("(pointer: coarse)");
  const figures = () => [...document.querySelectorAll("figure[data-plot]:not([data-empty])")];
  // Of each figure that is bound: the groups of curves that the reader hid, and the ranges it was drawn with.
  const states = new WeakMap();

  // A figure with the names of colours replaced by what they are in the present theme.
  const coloured = (value, style, key) => {
    if (Array.isArray(value)) return typeof value[0] === "object" ? value.map((part) => coloured(part, style)) : value;
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([name, part]) => [name, coloured(part, style, name)]));
    }
    return typeof value === "string" && /color$/.test(key) ? style.getPropertyValue(value).trim() : value;
  };

  const withColumns = (trace, found) => {
    const whole = { ...trace };
    ["x", "y", "customdata"].forEach((field) => { if (typeof trace[field] === "string") whole[field] = found[trace[field]]; });
    return whole;
  };

  const pressed = (figure, what) => figure.querySelector(`[data-toggle="${what}"]`).getAttribute("aria-pressed") === "true";

  const viewOf = (figure) => {
    const views = data[figure.dataset.plot];
    const chosen = [...figure.querySelectorAll('[data-view][aria-pressed="true"]')].map((button) => button.dataset.view);
    return views[chosen.join(", ")] || Object.values(views)[0];
  };

  const isZoomed = (plot, ranges) => Object.entries(ranges).some(
    ([axis, range]) => range && plot._fullLayout[axis].range.some((end, place) => Math.abs(end - range[place]) > 1e-9));

  const draw = (figure, { width, keepZoom } = {}) => {
    const plot = figure.querySelector(".plot");
    const state = states.get(figure);
    const { data: found, layout } = coloured(viewOf(figure), getComputedStyle(root));
    const traces = found.map((trace) => withColumns(trace, columns[figure.dataset.plot] || {}));
    kinfolk.showLegend(figure.querySelector(".legend"), traces, state.hidden, () => draw(figure));
    traces.forEach((trace) => { trace.visible = !state.hidden.has(kinfolk.groupOf(trace)); });
    layout.showlegend = false;
    layout.xaxis.type = pressed(figure, "log") ? "log" : "linear";
    // Plotly keeps how far the reader zoomed for as long as this stays the same.
    const kept = [state.revision, pressed(figure, "all"), width || ""].join();
    layout.xaxis.uirevision = layout.xaxis.type + layout.xaxis.title.text + kept;
    layout.yaxis.uirevision = layout.yaxis.title.text + kept;
    if (pressed(figure, "all")) delete layout.yaxis.range;
    if (pressed(figure, "all") || layout.xaxis.type === "linear") delete layout.xaxis.range;
    if (layout.xaxis.range) {
      const decades = layout.xaxis.range[1] - layout.xaxis.range[0];
      layout.xaxis.dtick = decades > (narrow.matches ? 1.5 : 5) ? 1 : "D2";
    }
    // Plotly keeps a zoom only for as long as it is given the same ranges, which grow while a build goes on.
    const ranges = keepZoom && state.ranges && isZoomed(plot, state.ranges) ? state.ranges
      : Object.fromEntries(["xaxis", "yaxis"].map((axis) => [axis, layout[axis].range && [...layout[axis].range]]));
    Object.entries(ranges).forEach(([axis, range]) => { if (range) layout[axis].range = [...range]; });
    state.ranges = ranges;
    if (coarse.matches) layout.dragmode = false;
    if (narrow.matches) { layout.margin.l = 44; layout.font.size = 12; layout.xaxis.nticks = 5; }
    if (width) { layout.width = width; layout.height = Math.min(360, plot.clientHeight || 360); } else { layout.autosize = true; }
    return Plotly.react(plot, traces, layout, { responsive: true, displayModeBar: false, doubleClick: "reset" });
  };

  // Makes the ranges of both axes `scale` times as long, and moves them by shares of what is shown.
  const move = (figure, scale, right = 0, up = 0) => {
    const plot = figure.querySelector(".plot");
    const ranges = Object.entries({ xaxis: right, yaxis: up }).flatMap(([name, share]) => {
      const axis = plot._fullLayout[name];
      if (axis.type === "category") return [];
      const [low, high] = axis.range;
      const middle = (low + high) / 2 + share * (high - low);
      const half = scale * (high - low) / 2;
      return [[`${name}.range`, [middle - half, middle + half]]];
    });
    return Plotly.relayout(plot, Object.fromEntries(ranges));
  };
  const reset = (figure) => { states.get(figure).revision += 1; draw(figure); };

  const keys = {
    "+": (figure) => move(figure, 0.6), "=": (figure) => move(figure, 0.6), "-": (figure) => move(figure, 1 / 0.6), 0: reset,
    ArrowLeft: (figure) => move(figure, 1, -0.15), ArrowRight: (figure) => move(figure, 1, 0.15),
    ArrowUp: (figure) => move(figure, 1, 0, 0.15), ArrowDown: (figure) => move(figure, 1, 0, -0.15),
  };

  const bind = (figure) => {
    states.set(figure, { hidden: new Set(), revision: 0, ranges: null });
    figure.querySelector(".controls").hidden = false;
    figure.querySelectorAll(".controls button").forEach((button) => button.addEventListener("click", () => {
      if (button.dataset.key) { keys[button.dataset.key](figure); return; }
      if (button.dataset.view) {
        button.parentElement.querySelectorAll("[data-view]").forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
      } else {
        button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
      }
      draw(figure);
    }));
    figure.querySelector(".plot").addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || !keys[event.key]) return;
      event.preventDefault();
      keys[event.key](figure);
    });
  };
  figures().forEach(bind);
  narrow.addEventListener("change", () => kinfolk.drawAll());

  kinfolk.drawAll = (width) => figures().forEach((figure) => draw(figure, { width }));
  // Shows all curves of a figure but those of these groups.
  kinfolk.hide = (key, groups) => figures().filter((figure) => figure.dataset.plot === key).forEach((figure) => {
    states.get(figure).hidden = new Set(groups);
    draw(figure);
  });

  // A page that is watched has been brought up to date: new figures are bound, and changed ones drawn again.
  document.addEventListener("kinfolk:update", () => {
    const said = (key) => JSON.stringify([data[key], columns[key]]);
    const before = new Map(figures().map((figure) => [figure, said(figure.dataset.plot)]));
    data = read("plots");
    columns = read("columns");
    figures().forEach((figure) => {
      const known = states.has(figure);
      if (!known) bind(figure);
      const changed = before.get(figure) !== said(figure.dataset.plot) || !figure.querySelector(".legend").children.length;
      if (!known || changed) draw(figure, { keepZoom: known });
    });
  });
})();
