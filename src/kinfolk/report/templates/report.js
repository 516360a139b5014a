(() => {
  "use strict";
  const root = document.documentElement;
  const data = JSON.parse(document.getElementById("plots").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const narrow = matchMedia("(max-width: 40rem)");
  const coarse = matchMedia("(pointer: coarse)");
  const themeButton = document.getElementById("theme");

  const theme = () => root.dataset.theme || (dark.matches ? "dark" : "light");

  // A figure with the names of colours replaced by what they are in the present theme.
  const coloured = (value, style, key) => {
    if (Array.isArray(value)) return typeof value[0] === "object" ? value.map((part) => coloured(part, style)) : value;
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([name, part]) => [name, coloured(part, style, name)]));
    }
    return typeof value === "string" && /color$/.test(key) ? style.getPropertyValue(value).trim() : value;
  };

  const pressed = (figure, what) => figure.querySelector(`[data-toggle="${what}"]`).getAttribute("aria-pressed") === "true";

  const draw = (figure, width) => {
    const plot = figure.querySelector(".plot");
    const views = data[figure.dataset.plot];
    const chosen = figure.querySelector('[data-view][aria-pressed="true"]');
    const view = views[chosen ? chosen.dataset.view : Object.keys(views)[0]];
    const { data: traces, layout } = coloured(view, getComputedStyle(root));
    // Plotly keeps which curves the reader switched off only if it may compare with what it drew.
    layout.uirevision = "kept";
    layout.xaxis.type = pressed(figure, "log") ? "log" : "linear";
    layout.xaxis.uirevision = layout.xaxis.type + layout.xaxis.title.text + pressed(figure, "all");
    layout.yaxis.uirevision = String(pressed(figure, "all"));
    if (pressed(figure, "all")) delete layout.yaxis.range;
    if (pressed(figure, "all") || layout.xaxis.type === "linear") delete layout.xaxis.range;
    if (layout.xaxis.range) {
      const decades = layout.xaxis.range[1] - layout.xaxis.range[0];
      layout.xaxis.dtick = decades > (narrow.matches ? 1.5 : 5) ? 1 : "D2";
    }
    plot.style.height = narrow.matches ? `${380 + 22 * traces.filter((trace) => trace.showlegend !== false).length}px` : "";
    if (coarse.matches) layout.dragmode = false;
    if (narrow.matches) { layout.margin.l = 44; layout.font.size = 12; layout.xaxis.nticks = 5; }
    if (width) { layout.width = width; layout.height = 400; } else { layout.autosize = true; }
    return Plotly.react(plot, traces, layout, {
      responsive: true, displaylogo: false,
      modeBarButtonsToRemove: ["select2d", "lasso2d", "zoomIn2d", "zoomOut2d", "autoScale2d"],
      displayModeBar: coarse.matches ? false : "hover",
    });
  };

  const figures = [...document.querySelectorAll("figure[data-plot]:not([data-empty])")];
  const drawAll = (width) => figures.forEach((figure) => draw(figure, width));

  const showTheme = () => { themeButton.textContent = theme() === "dark" ? "Light colours" : "Dark colours"; };
  themeButton.hidden = false;
  themeButton.addEventListener("click", () => {
    root.dataset.theme = theme() === "dark" ? "light" : "dark";
    showTheme();
    drawAll();
  });
  dark.addEventListener("change", () => { showTheme(); drawAll(); });
  narrow.addEventListener("change", () => drawAll());

  figures.forEach((figure) => {
    figure.querySelector(".controls").hidden = false;
    figure.querySelectorAll("button").forEach((button) => button.addEventListener("click", () => {
      if (button.dataset.view) {
        figure.querySelectorAll("[data-view]").forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
      } else {
        button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
      }
      draw(figure);
    }));
  });

  let before;
  let opened = [];
  addEventListener("beforeprint", () => {
    before = root.dataset.theme;
    root.dataset.theme = "light";
    opened = [...document.querySelectorAll("details:not([open])")];
    opened.forEach((part) => { part.open = true; });
    drawAll(680);
  });
  addEventListener("afterprint", () => {
    opened.forEach((part) => { part.open = false; });
    if (before) root.dataset.theme = before; else delete root.dataset.theme;
    drawAll();
  });

  showTheme();
  drawAll();
})();
