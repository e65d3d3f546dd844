// The toolbar: out of the way at the top edge until the pointer goes there, its handle is touched, or Ctrl, Alt and Shift
// are pressed together (the desktop gets every other key). One panel at a time opens below it.
import { $ } from './dom.js';

const hideAfter = 1800; // ms without pointer or focus
const dwell = 120;      // ms at the edge before it shows, so that crossing it does not

export class Bar {
    constructor(focusDesktop) {
        this.focusDesktop = focusDesktop;
        this.bar = $('bar');
        this.panels = new Map([...this.bar.querySelectorAll('[aria-controls^=p-]')]
            .map((button) => [button, $(button.getAttribute('aria-controls'))]));
        for (const [button, panel] of this.panels) {
            button.addEventListener('click', () => this.open(panel.hidden ? button : null));
        }
        $('handle').addEventListener('click', () => (this.shown ? this.hide() : this.show()));

        let timer;
        addEventListener('pointermove', (event) => {
            this.pointer = event.pointerType === 'mouse' ? event : null;
            if (event.pointerType !== 'mouse') {
                return;
            }
            if (event.clientY <= 2 && event.buttons === 0) {
                timer ??= setTimeout(() => this.show(), dwell);
            } else {
                clearTimeout(timer);
                timer = null;
            }
        }, true);
        this.bar.addEventListener('pointerenter', () => this.stay());
        this.bar.addEventListener('pointerleave', () => this.hideSoon());
        this.bar.addEventListener('focusin', () => this.show());
        this.bar.addEventListener('focusout', () => this.hideSoon());
        // A click on the desktop closes all.
        $('screen').addEventListener('pointerdown', () => this.hide(), true);
        addEventListener('keydown', (event) => {
            if (event.ctrlKey && event.altKey && event.shiftKey && ['Control', 'Alt', 'Shift', 'Meta'].includes(event.key) && !event.repeat) {
                this.shown ? this.hide() : this.show(true);
            } else if (event.key === 'Escape' && this.bar.contains(document.activeElement)) {
                this.current ? this.open(null) : this.hide();
                event.preventDefault();
            } else if (['ArrowLeft', 'ArrowRight'].includes(event.key) && event.target.closest?.('[role=toolbar]')) {
                const all = [...this.bar.querySelectorAll('[role=toolbar] :is(button, a)')].filter((e) => e.offsetParent);
                const next = all.indexOf(event.target) + (event.key === 'ArrowRight' ? 1 : -1);
                all.at(next % all.length).focus();
                event.preventDefault();
            }
        }, true);
    }

    get shown() {
        return this.bar.classList.contains('shown');
    }

    show(focus = false) {
        this.stay();
        this.bar.classList.add('shown');
        $('handle').setAttribute('aria-expanded', 'true');
        if (focus) {
            this.bar.querySelector('[role=toolbar] button').focus();
        } else {
            this.hideSoon();
        }
    }

    stay() {
        clearTimeout(this.timer);
    }

    hideSoon() {
        clearTimeout(this.timer);
        this.timer = setTimeout(() => {
            // A button that was clicked keeps the focus, which is no reason to stay; one reached by keyboard is.
            const focused = this.bar.querySelector(':focus-visible');
            if (!this.current && !focused && !this.hovered()) {
                this.hide();
            } else {
                this.hideSoon();
            }
        }, hideAfter);
    }

    // hovered tells whether the pointer is over the bar, also when it was the bar that moved.
    hovered() {
        return this.pointer && this.bar.contains(document.elementFromPoint(this.pointer.clientX, this.pointer.clientY));
    }

    hide() {
        clearTimeout(this.timer);
        this.open(null);
        this.bar.classList.remove('shown');
        $('handle').setAttribute('aria-expanded', 'false');
        if (this.bar.contains(document.activeElement)) {
            this.focusDesktop();
        }
    }

    // open shows the panel of a button, or with null none.
    open(which) {
        this.current = which;
        for (const [button, panel] of this.panels) {
            panel.hidden = button !== which;
            button.setAttribute('aria-expanded', String(button === which));
        }
        if (which) {
            this.show();
            this.place(which, this.panels.get(which));
        }
    }

    // place puts the panel below its button, inside the window.
    place(button, panel) {
        const at = button.getBoundingClientRect();
        const width = panel.offsetWidth;
        const left = Math.min(Math.max(at.left + at.width / 2 - width / 2, 8), innerWidth - width - 8);
        panel.style.left = `${Math.max(left, 8)}px`;
    }
}
