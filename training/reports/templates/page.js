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

  const chips = all("button[data-class]", toolbar);
  const count = toolbar.querySelector(".count");
  const filter = (wanted) => {
    chips.forEach((chip) => chip.setAttribute("aria-pressed", String(chip.dataset.class === wanted)));
    cards.forEach((card) => { card.hidden = wanted !== null && !card.dataset.classes.split(" ").includes(wanted); });
    all("section.images").forEach((section) => {
      section.querySelector(".none").hidden = section.querySelector("article:not([hidden])") !== null;
    });
    const shown = cards.filter((card) => !card.hidden).length;
    count.textContent = wanted === null ? "" : `${shown} of ${cards.length} images`;
  };
  chips.forEach((chip) => chip.addEventListener("click", () => {
    filter(chip.getAttribute("aria-pressed") === "true" ? null : chip.dataset.class);
  }));
})();
