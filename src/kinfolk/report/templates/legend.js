// The key of a plot as buttons: each shows and hides its curves, by mouse, touch or keyboard.
const kinfolk = {};
(() => {
  "use strict";
  const svg = (name, attributes) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    Object.entries(attributes).forEach(([key, value]) => made.setAttribute(key, value));
    return made;
  };

  const shapes = {
    circle: "M4,0A4,4 0 1 0 -4,0A4,4 0 1 0 4,0Z",
    square: "M-4,-4H4V4H-4Z",
    diamond: "M0,-5L5,0L0,5L-5,0Z",
    "triangle-up": "M0,-5L5,4H-5Z",
    "triangle-down": "M0,5L5,-4H-5Z",
    x: "M-5,-3L-3,-5L0,-2L3,-5L5,-3L2,0L5,3L3,5L0,2L-3,5L-5,3L-2,0Z",
    star: "M0,-6L1.5,-2H6L2.4,.8L3.6,5L0,2.4L-3.6,5L-2.4,.8L-6,-2H-1.5Z",
  };
  const dashes = { dash: "5 3", dot: "1.5 2.5", dashdot: "5 2 1.5 2" };

  const swatch = (trace) => {
    const drawn = svg("svg", { width: 24, height: 12, viewBox: "-12 -6 24 12", "aria-hidden": "true" });
    const mode = trace.mode || "";
    const marker = { symbol: "circle", color: (trace.line || {}).color, ...trace.marker };
    if (trace.type === "bar") drawn.append(svg("path", { d: "M-6,-5H6V5H-6Z", fill: marker.color }));
    if (mode.includes("lines")) {
      drawn.append(svg("path", { d: "M-12,0H12", fill: "none", stroke: trace.line.color, "stroke-width": 2.5, "stroke-dasharray": dashes[trace.line.dash] || "none" }));
    }
    if (mode.includes("markers")) {
      drawn.append(svg("path", {
        d: shapes[marker.symbol.replace("-open", "")] || shapes.circle, stroke: marker.color, "stroke-width": 1.5,
        fill: marker.symbol.endsWith("-open") ? "none" : marker.color,
      }));
    }
    return drawn;
  };

  // Names are written for plotly, which reads HTML; a parsed document runs nothing and loads nothing.
  const plain = (name) => new DOMParser().parseFromString(name, "text/html").documentElement.textContent.replaceAll("\u200b", "");

  kinfolk.groupOf = (trace) => trace.legendgroup || trace.name;

  // Lists what `traces` draw; `hidden` holds the groups that are not shown, and `changed` is called after a choice.
  kinfolk.showLegend = (list, traces, hidden, changed) => {
    const named = traces.filter((trace) => trace.name && trace.showlegend !== false);
    const focused = document.activeElement && document.activeElement.dataset.legend;
    list.hidden = named.length < 2;
    list.replaceChildren(...named.map((trace) => {
      const group = kinfolk.groupOf(trace);
      const item = document.createElement("li");
      const button = document.createElement("button");
      button.type = "button";
      button.dataset.legend = group;
      button.setAttribute("aria-pressed", String(!hidden.has(group)));
      button.append(swatch(trace), plain(trace.name));
      button.addEventListener("click", () => {
        if (!hidden.delete(group)) hidden.add(group);
        changed();
      });
      item.append(button);
      return item;
    }));
    if (focused) [...list.querySelectorAll("button")].find((button) => button.dataset.legend === focused)?.focus();
  };
})();
