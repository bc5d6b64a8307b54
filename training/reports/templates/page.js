"use strict";
// Works on what the page contains: a toolbar and cards with overlays. Without a script every image shows its first
// layer, and radio buttons still choose layers.
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const toolbar = document.querySelector(".toolbar");
  if (!toolbar) return;
  const cards = all("section.images article");
  const slider = (root) => root.querySelector("input[type=range]");
  const fade = (card, value) => {
    slider(card).value = value;
    card.style.setProperty("--fade", value / 100);
  };

  cards.forEach((card) => {
    slider(card).addEventListener("input", () => fade(card, slider(card).value));
    // choosing a layer shows it, also where the overlay was faded out
    all("input[type=radio]", card).forEach((radio) => radio.addEventListener("change", () => {
      if (Number(slider(card).value) === 0) fade(card, 100);
    }));
  });

  const strength = slider(toolbar);
  const fadeAll = () => cards.forEach((card) => fade(card, strength.value));
  strength.addEventListener("input", fadeAll);
  all("input[type=radio]", toolbar).forEach((radio) => radio.addEventListener("change", () => {
    if (Number(strength.value) === 0) { strength.value = 100; fadeAll(); }
    cards.forEach((card) => {
      const own = card.querySelector(`input[value=${radio.value}]`);
      if (own) own.checked = true;
    });
  }));

  const chips = all("button.chip", toolbar);
  const count = toolbar.querySelector(".count");
  // of each kind of chips, data-class and data-reason, at most one is pressed
  const pressed = (kind) => chips.find((chip) => chip.getAttribute("aria-pressed") === "true" && kind in chip.dataset)?.dataset[kind];
  const filter = () => {
    const label = pressed("class"), reason = pressed("reason");
    cards.forEach((card) => {
      card.hidden = (label !== undefined && !card.dataset.classes.split(" ").includes(label))
        || (reason !== undefined && card.dataset.reason !== reason);
    });
    all("section.images").forEach((section) => {
      section.querySelector(".none").hidden = section.querySelector("article:not([hidden])") !== null;
    });
    // an image may have a card in two sections
    const images = (some) => new Set(some.map((card) => card.querySelector("h3 span").textContent)).size;
    const shown = images(cards.filter((card) => !card.hidden));
    count.textContent = label === undefined && reason === undefined ? "" : `${shown} of ${images(cards)} images`;
  };
  chips.forEach((chip) => chip.addEventListener("click", () => {
    const on = chip.getAttribute("aria-pressed") !== "true", kind = "class" in chip.dataset ? "class" : "reason";
    chips.filter((other) => kind in other.dataset).forEach((other) => other.setAttribute("aria-pressed", "false"));
    chip.setAttribute("aria-pressed", String(on));
    filter();
  }));

  // j and k go from image to image, digits choose the overlay of the image that has the focus
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const shown = cards.filter((card) => !card.hidden && card.hasAttribute("tabindex"));
    const at = shown.findIndex((card) => card.contains(document.activeElement));
    if (event.key === "j" || event.key === "k") {
      const next = shown[at < 0 ? 0 : at + (event.key === "j" ? 1 : -1)];
      if (next) { next.focus({ preventScroll: true }); next.scrollIntoView({ block: "center" }); }
    } else if (at >= 0 && /^[1-9]$/.test(event.key)) {
      const radio = all("input[type=radio]", shown[at])[Number(event.key) - 1];
      if (radio) { radio.checked = true; radio.dispatchEvent(new Event("change")); }
    }
  });
})();
