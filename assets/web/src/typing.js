// The on-screen keyboard of phones and tablets. It types into a hidden text field, whose changes become keys. Such
// keyboards send no useful key events; they replace, correct and compose, so what counts is the text before and after.
import KeyTable from '../node_modules/@novnc/novnc/core/input/keysym.js';
import keysyms from '../node_modules/@novnc/novnc/core/input/keysymdef.js';

// Something to delete: on an empty field, backspace would not be reported.
const filler = '_'.repeat(50);

const named = {
    Backspace: KeyTable.XK_BackSpace, Enter: KeyTable.XK_Return, Tab: KeyTable.XK_Tab, Escape: KeyTable.XK_Escape,
    ArrowLeft: KeyTable.XK_Left, ArrowRight: KeyTable.XK_Right, ArrowUp: KeyTable.XK_Up, ArrowDown: KeyTable.XK_Down,
    Home: KeyTable.XK_Home, End: KeyTable.XK_End, PageUp: KeyTable.XK_Page_Up, PageDown: KeyTable.XK_Page_Down,
    Delete: KeyTable.XK_Delete,
};

export class Typing {
    constructor(field, send, onchange) {
        this.field = field;
        this.send = send; // called with a keysym for each key pressed and released
        this.reset();
        field.addEventListener('input', (event) => this.changed(event));
        field.addEventListener('compositionend', () => this.reset());
        field.addEventListener('keydown', (event) => {
            const keysym = named[event.key];
            if (keysym && !event.isComposing) {
                event.preventDefault();
                this.send(keysym);
            }
        });
        field.addEventListener('focus', () => onchange(true));
        field.addEventListener('blur', () => onchange(false));
    }

    toggle() {
        if (document.activeElement === this.field) {
            this.field.blur();
        } else {
            this.reset();
            this.field.focus({ preventScroll: true });
        }
    }

    reset() {
        this.field.value = this.before = filler;
        this.field.setSelectionRange(filler.length, filler.length);
    }

    changed(event) {
        const before = [...this.before], after = [...this.field.value];
        let same = 0;
        while (same < before.length && same < after.length && before[same] === after[same]) {
            same++;
        }
        for (let i = same; i < before.length; i++) {
            this.send(KeyTable.XK_BackSpace);
        }
        for (const char of after.slice(same)) {
            this.send(char === '\n' ? KeyTable.XK_Return : keysyms.lookup(char.codePointAt(0)));
        }
        this.before = this.field.value;
        // During a composition the field belongs to the keyboard.
        if (!event.isComposing && (after.length < filler.length / 2 || after.length > filler.length * 4)) {
            this.reset();
        }
    }
}

export { KeyTable };
