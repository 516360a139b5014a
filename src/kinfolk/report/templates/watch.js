(() => {
  "use strict";
  const EVERY = 2000, WHEN_LOST = 10000, QUIET = 300;
  const PARTS = ["header", "nav", "main", "footer"], DATA = ["plots", "columns"];
  const pill = document.getElementById("watch");
  const [state, age] = pill.children;
  // The page as it was sent. Where the document differs from it, the difference is the reader's, and stays.
  let before = document.body.cloneNode(true);
  let timer;

  const name = (node) => node.id || (node.dataset && (node.dataset.plot || node.dataset.stage || node.dataset.member));

  // Children by a key that holds when others come before them: a name, and the place among those alike.
  const keyed = (nodes) => {
    const count = {};
    return [...nodes].map((node) => {
      const like = `${node.nodeName} ${name(node) || ""}`;
      count[like] = (count[like] || 0) + 1;
      return `${like} ${count[like]}`;
    });
  };

  const mergeChildren = (live, old, fresh) => {
    // Where a script has put in its own elements, nothing says which is which.
    if (live.childNodes.length !== old.childNodes.length) { live.replaceChildren(...fresh.cloneNode(true).childNodes); return; }
    const known = new Map(keyed(old.childNodes).map((key, place) => [key, [live.childNodes[place], old.childNodes[place]]]));
    const wanted = keyed(fresh.childNodes);
    known.forEach(([gone], key) => { if (!wanted.includes(key)) gone.remove(); });
    let next = live.firstChild;
    wanted.forEach((key, place) => {
      const child = fresh.childNodes[place];
      if (!known.has(key)) { live.insertBefore(child.cloneNode(true), next); return; }
      const [here, was] = known.get(key);
      if (here === next) next = next.nextSibling; else live.insertBefore(here, next);
      merge(here, was, child);
    });
  };

  // Brings `live` from what was sent as `old` to what is sent now, and leaves alone what is the same in both.
  const merge = (live, old, fresh) => {
    if (old.isEqualNode(fresh)) return;
    if (old.nodeName !== fresh.nodeName || live.nodeName !== old.nodeName) { live.replaceWith(fresh.cloneNode(true)); return; }
    if (live.nodeType !== Node.ELEMENT_NODE) { live.data = fresh.data; return; }
    for (const attribute of new Set([...old.getAttributeNames(), ...fresh.getAttributeNames()])) {
      if (old.getAttribute(attribute) === fresh.getAttribute(attribute)) continue;
      if (fresh.hasAttribute(attribute)) live.setAttribute(attribute, fresh.getAttribute(attribute));
      else live.removeAttribute(attribute);
    }
    // What stands in a noscript is text in a page, and elements in one that is only parsed.
    if (!live.matches(".plot, noscript")) mergeChildren(live, old, fresh);
  };

  const show = (text) => {
    const fresh = new DOMParser().parseFromString(text, "text/html");
    const sent = fresh.getElementById("watch").dataset;
    // From the page that waits, which has nothing to keep, to the report.
    if (pill.dataset.page === "waiting" && sent.page !== "waiting") { location.reload(); return; }
    PARTS.forEach((part) => {
      const place = `:scope > ${part}`;
      merge(document.body.querySelector(place), before.querySelector(place), fresh.body.querySelector(place));
    });
    document.title = fresh.title;
    DATA.forEach((id) => { document.getElementById(id).textContent = fresh.getElementById(id).textContent; });
    before = fresh.body;
    Object.assign(pill.dataset, { ...sent });
    document.dispatchEvent(new Event("kinfolk:update"));
  };

  const ago = (seconds) => seconds < 5 ? "just now" : seconds < 90 ? `${Math.round(seconds)} s ago`
    : seconds < 5400 ? `${Math.round(seconds / 60)} min ago` : `${Math.round(seconds / 3600)} h ago`;

  const tell = (look, text, more = "") => {
    pill.dataset.look = look;
    // A reader of the screen is told of a new state, and not of every second.
    if (state.textContent !== text) state.textContent = text;
    age.textContent = more;
  };

  const tellState = (seconds) => {
    const { page, problem } = pill.dataset;
    if (page === "waiting") tell("hint", "Waiting for the build to begin");
    else if (problem) tell("hint", problem);
    else if (page === "finished") tell("done", "The build is finished");
    else if (seconds > QUIET) tell("hint", "No change for a while: is the build still at work?", ago(seconds));
    else tell("live", "Live", `changed ${ago(seconds)}`);
  };

  const ask = async () => {
    clearTimeout(timer);
    if (document.hidden) return;
    let wait = EVERY;
    try {
      const answer = await fetch("/update", { headers: { "If-None-Match": `"${pill.dataset.version}"` } }).catch(() => null);
      if (answer && answer.status === 200) show(await answer.text());
      if (answer) tellState(Number(answer.headers.get("Seconds-Since-Change")));
      else { wait = WHEN_LOST; tell("lost", "The watch has ended; this page stays as it is"); }
    } finally {
      timer = setTimeout(ask, wait);
    }
  };

  document.addEventListener("visibilitychange", ask);
  tellState(0);
  timer = setTimeout(ask, EVERY);
})();
