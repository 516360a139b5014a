// The page's theme, and how it prints; then the first drawing.
(() => {
  "use strict";
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const themeButton = document.getElementById("theme");
  const theme = () => root.dataset.theme || (dark.matches ? "dark" : "light");
  const showTheme = () => { themeButton.textContent = theme() === "dark" ? "Light colours" : "Dark colours"; };

  themeButton.hidden = false;
  themeButton.addEventListener("click", () => {
    root.dataset.theme = theme() === "dark" ? "light" : "dark";
    showTheme();
    kinfolk.drawAll();
  });
  dark.addEventListener("change", () => { showTheme(); kinfolk.drawAll(); });

  let before;
  let opened = [];
  addEventListener("beforeprint", () => {
    before = root.dataset.theme;
    root.dataset.theme = "light";
    opened = [...document.querySelectorAll("details:not([open])")];
    opened.forEach((part) => { part.open = true; });
    kinfolk.drawAll(680);
  });
  addEventListener("afterprint", () => {
    opened.forEach((part) => { part.open = false; });
    if (before) root.dataset.theme = before; else delete root.dataset.theme;
    kinfolk.drawAll();
  });

  showTheme();
  kinfolk.drawAll();
})();
