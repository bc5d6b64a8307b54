"use strict";
// Works on what is on the page; without it every image shows its prediction, and radio buttons still choose layers.
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const toolbar = document.querySelector(".toolbar");
  const cards = all("article");
  const fade = (card, value) => card.style.setProperty("--fade", value / 100);

  cards.forEach((card) => {
    const range = card.querySelector("input[type=range]");
    range.addEventListener("input", () => fade(card, range.value));
    // choosing a layer shows it, also where the overlay was faded out
    all("input[type=radio]", card).forEach((radio) => radio.addEventListener("change", () => {
      if (Number(range.value) === 0) { range.value = 100; fade(card, 100); }
    }));
  });
  if (!toolbar) return;

  const strength = toolbar.querySelector("input[type=range]");
  const fadeAll = () => cards.forEach((card) => {
    card.querySelector("input[type=range]").value = strength.value;
    fade(card, strength.value);
  });
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
