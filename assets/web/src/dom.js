// h makes an element: h('a', { href, class: 'x', onclick: f }, 'text', otherElement).
export function h(tag, props = {}, ...children) {
    const e = document.createElement(tag);
    for (const [k, v] of Object.entries(props)) {
        if (k.startsWith('on')) {
            e.addEventListener(k.slice(2), v);
        } else if (v === true) {
            e.setAttribute(k, '');
        } else if (v !== false && v != null) {
            e.setAttribute(k, v);
        }
    }
    e.append(...children);
    return e;
}

export const $ = (id) => document.getElementById(id);

// settings are what this browser remembers. Private windows may refuse storage: then nothing is remembered.
export const settings = {
    get(key, fallback) {
        try {
            return localStorage.getItem(`berth.${key}`) ?? fallback;
        } catch {
            return fallback;
        }
    },
    set(key, value) {
        try {
            localStorage.setItem(`berth.${key}`, value);
        } catch {
            // as said
        }
    },
};
