// Two duties: the maps (hover, touch, arrow keys), and, where the page is served, taking in what is new.
"use strict";

function wakeMap(map) {
  const svg = map.querySelector("svg"), lens = map.querySelector(".lens");
  const dots = Array.from(svg.querySelectorAll("circle"));
  const places = dots.map((dot) => [dot.cx.baseVal.value, dot.cy.baseVal.value]);
  const columns = Number(map.dataset.columns), rows = Math.ceil(dots.length / columns), shown = 6; // rem
  let chosen = -1;

  function choose(index, announce) {
    if (chosen >= 0) dots[chosen].classList.remove("chosen");
    chosen = index;
    lens.hidden = index < 0;
    if (index < 0) return;
    const dot = dots[index], thumb = lens.querySelector(".thumb");
    dot.classList.add("chosen");
    thumb.style.backgroundSize = `${columns * shown}rem ${rows * shown}rem`;
    thumb.style.backgroundPosition = `${-(index % columns) * shown}rem ${-Math.floor(index / columns) * shown}rem`;
    lens.querySelector("span").textContent = dot.getAttribute("aria-label");
    const box = map.getBoundingClientRect(), at = dot.getBoundingClientRect();
    const x = at.left - box.left, y = at.top - box.top;
    const left = x + 24 + lens.offsetWidth > box.width ? x - lens.offsetWidth - 12 : x + 24;
    lens.style.left = `${Math.max(0, Math.min(left, box.width - lens.offsetWidth))}px`;
    lens.style.top = `${Math.max(0, Math.min(y - lens.offsetHeight / 2, box.height - lens.offsetHeight))}px`;
    if (announce) {
      svg.setAttribute("aria-activedescendant", dot.id);
      dots.forEach((other, n) => n === index ? other.setAttribute("aria-selected", "true") : other.removeAttribute("aria-selected"));
    }
  }

  function nearest(score) {
    let best = -1, least = Infinity;
    places.forEach((place, n) => { const s = score(place, n); if (s < least) { least = s; best = n; } });
    return best;
  }

  function pointed(event) {
    const matrix = svg.getScreenCTM();
    if (!matrix) return;
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(matrix.inverse());
    const reach = event.pointerType === "touch" ? 30 : 14;
    const found = nearest(([x, y]) => Math.hypot(x - at.x, y - at.y));
    const near = found >= 0 && Math.hypot(places[found][0] - at.x, places[found][1] - at.y) <= reach;
    choose(near ? found : -1, false);
  }

  svg.addEventListener("pointermove", pointed);
  svg.addEventListener("pointerdown", pointed);
  svg.addEventListener("pointerleave", (event) => { if (event.pointerType !== "touch") choose(-1, false); });
  svg.addEventListener("focus", () => { if (svg.matches(":focus-visible") && chosen < 0) choose(nearest(([x, y]) => Math.hypot(x - 300, y - 220)), true); });
  svg.addEventListener("blur", () => choose(-1, false));
  svg.addEventListener("keydown", (event) => {
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (event.key === "Escape") return choose(-1, false);
    if (event.key === "Home" || event.key === "End") { event.preventDefault(); return choose(event.key === "Home" ? 0 : dots.length - 1, true); }
    if (!way) return;
    event.preventDefault();
    if (chosen < 0) return choose(0, true);
    const [cx, cy] = places[chosen];
    const next = nearest(([x, y], n) => {
      const along = (x - cx) * way[0] + (y - cy) * way[1], aside = Math.abs((x - cx) * way[1] + (y - cy) * way[0]);
      return n === chosen || along <= 0 || aside > 2 * along ? Infinity : along + 2 * aside;
    });
    if (next >= 0) choose(next, true);
  });
  map.restore = (index) => choose(index, true);
  map.chosen = () => chosen;
}

function wake(root) { root.querySelectorAll(".map").forEach(wakeMap); }
wake(document);

// Sections that have changed are put in the place of the old ones; what was open stays open, and focus stays where it was.
const seen = new Map(Array.from(document.querySelectorAll("main > section"), (s) => [s.id, s.outerHTML]));

// What stands for an element in another state of the page: its place among its like within the nearest that has an id.
function alike(anchor, element) { return Array.from(anchor.getElementsByTagName(element.tagName)); }

function takeIn(text) {
  const fresh = new DOMParser().parseFromString(text, "text/html"), main = document.getElementById("main");
  const top = window.scrollY;
  let before = null;
  for (const section of Array.from(fresh.querySelectorAll("main > section"))) {
    const html = section.outerHTML, old = document.getElementById(section.id);
    if (old && seen.get(section.id) === html) { before = old; continue; }
    seen.set(section.id, html);
    const next = document.importNode(section, true);
    if (!old) {
      before ? before.after(next) : main.prepend(next);
    } else {
      const focused = old.contains(document.activeElement) ? document.activeElement : null;
      const anchor = focused && focused.closest("[id]"), place = anchor ? alike(anchor, focused).indexOf(focused) : -1;
      const map = focused && focused.closest(".map"), dot = map ? map.chosen() : -1;
      const scrolls = Array.from(old.querySelectorAll(".scroll, pre"), (e) => [e.scrollLeft, e.scrollTop]);
      next.querySelectorAll("details[id]").forEach((d) => { const was = document.getElementById(d.id); if (was) d.open = was.open; });
      old.replaceWith(next);
      next.querySelectorAll(".scroll, pre").forEach((e, n) => { if (scrolls[n]) [e.scrollLeft, e.scrollTop] = scrolls[n]; });
      if (focused) {
        const now = document.getElementById(anchor.id), again = place < 0 ? now : now && alike(now, focused)[place];
        if (again) again.focus({ preventScroll: true });
      }
      wake(next);
      if (map) { const now = document.activeElement.closest(".map"); if (now && dot >= 0 && dot < now.querySelectorAll("circle").length) now.restore(dot); }
      before = next;
      continue;
    }
    wake(next);
    before = next;
  }
  document.querySelectorAll("main > section").forEach((s) => { if (!fresh.getElementById(s.id)) { seen.delete(s.id); s.remove(); } });
  document.querySelector("nav").replaceChildren(...Array.from(fresh.querySelector("nav").childNodes, (n) => document.importNode(n, true)));
  document.querySelector("footer").replaceChildren(...Array.from(fresh.querySelector("footer").childNodes, (n) => document.importNode(n, true)));
  window.scrollTo({ top, behavior: "instant" });
}

const root = document.documentElement;
if (root.dataset.live) {
  setInterval(async () => {
    if (document.hidden) return;
    let now, text;
    try {
      now = await (await fetch("version")).text();
      if (now === root.dataset.live) return;
      text = await (await fetch("./")).text();
    } catch { return; } // the server has ended: the page stays as it is
    root.dataset.live = now;
    takeIn(text);
  }, 2000);
}
