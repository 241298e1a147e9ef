"use strict";
// Asks the service every few seconds for this page again and takes over what has changed, so that what is said, and how, is
// decided in one place only.
(() => {
  const every = 1000 * document.body.dataset.every;
  if (!every) return; // the search is not asked again
  const away = document.getElementById("away");
  let last = new Date(), timer;

  // follow makes the node "old" like "now", and touches nothing that is alike: selections and bars that grow survive.
  function follow(old, now) {
    if (old.nodeType !== now.nodeType || old.nodeName !== now.nodeName) {
      old.replaceWith(document.importNode(now, true));
      return;
    }
    if (old.nodeType !== Node.ELEMENT_NODE) {
      if (old.data !== now.data) old.data = now.data;
      return;
    }
    for (const a of [...old.attributes]) if (!now.hasAttribute(a.name) && a.name !== "open") old.removeAttribute(a.name); // what was opened stays so
    for (const a of now.attributes) if (old.getAttribute(a.name) !== a.value) old.setAttribute(a.name, a.value);
    const have = [...old.childNodes], want = [...now.childNodes];
    want.forEach((n, i) => i < have.length ? follow(have[i], n) : old.append(document.importNode(n, true)));
    have.slice(want.length).forEach((n) => n.remove());
  }

  function lost(why) {
    away.querySelector("span").textContent = "no answer since " + last.toLocaleTimeString() + why + "; what stands below is of then";
    away.hidden = false;
    document.body.classList.add("away");
  }

  async function look() {
    try {
      const r = await fetch(location.pathname + location.search, { cache: "no-store", signal: AbortSignal.timeout(4000 + every) });
      if (!r.ok) return lost(" (HTTP status " + r.status + ")");
      const next = new DOMParser().parseFromString(await r.text(), "text/html");
      if (!next.querySelector("main")) return lost(" (another program answers)");
      if (next.body.dataset.build !== document.body.dataset.build) return location.reload(); // the service was upgraded
      last = new Date();
      away.hidden = true;
      document.body.classList.remove("away");
      follow(document.querySelector("header"), next.querySelector("header"));
      follow(document.querySelector("main"), next.querySelector("main"));
      document.title = next.title;
    } catch {
      lost("");
    }
  }

  async function round() {
    clearTimeout(timer);
    if (!document.hidden) await look();
    timer = setTimeout(round, every);
  }
  document.addEventListener("visibilitychange", () => { if (!document.hidden) round(); });
  timer = setTimeout(round, every);
})();
