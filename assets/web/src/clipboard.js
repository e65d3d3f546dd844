// The clipboard, both ways. Where the browser lets the page (a secure context, and the user's leave for reading), it
// happens by itself; the text box in the toolbar always works.
import { $ } from './dom.js';

export class Clipboard {
    constructor(onnew) {
        this.onnew = onnew; // called when the desktop's clipboard has something that could not be handed over
        this.text = '';     // what both sides have, as far as known
        this.pending = null;
        this.api = navigator.clipboard;
        this.box = $('cliptext');
        this.state = $('clipstate');

        let timer;
        this.box.addEventListener('input', () => {
            clearTimeout(timer);
            timer = setTimeout(() => this.send(this.box.value), 300);
        });
        this.box.addEventListener('blur', () => this.send(this.box.value));
        $('clipcopy').addEventListener('click', () => this.copy());
        $('clippaste').addEventListener('click', () => this.paste(true));
        $('clippaste').hidden = !this.api?.readText;

        // Browsers allow writing only in or shortly after a user's action: the next one takes what is waiting along.
        for (const event of ['pointerup', 'keyup']) {
            addEventListener(event, () => this.flush(), true);
        }
        // Coming back from another program, its copy is what one wants to paste.
        addEventListener('focus', () => this.paste(false));
        this.explain();
    }

    explain() {
        if (!this.api) {
            this.state.textContent = 'Without HTTPS browsers keep pages away from the clipboard. Copy and paste in the box above.';
        }
    }

    attach(rfb) {
        this.rfb = rfb;
        rfb.addEventListener('clipboard', (event) => this.received(event.detail.text));
        rfb.addEventListener('connect', () => this.paste(false));
    }

    received(text) {
        if (text === this.text) {
            return;
        }
        this.text = text;
        if (document.activeElement !== this.box) {
            this.box.value = text;
        }
        this.pending = text;
        this.flush();
    }

    async flush() {
        const text = this.pending;
        if (text === null || !this.api?.writeText || !document.hasFocus()) {
            if (text !== null) {
                this.onnew(true);
            }
            return;
        }
        try {
            await this.api.writeText(text);
            if (this.pending === text) {
                this.pending = null;
                this.onnew(false);
            }
        } catch {
            this.onnew(true); // the next user's action tries again
        }
    }

    send(text) {
        if (text === this.text || !this.rfb) {
            return;
        }
        this.text = text;
        this.pending = null;
        this.rfb.clipboardPasteFrom(text);
    }

    // copy puts the box's text on this computer's clipboard, also where there is no Clipboard API.
    async copy() {
        try {
            if (this.api) {
                await this.api.writeText(this.box.value);
            } else {
                this.box.select();
                if (!document.execCommand('copy')) {
                    throw new Error('refused');
                }
            }
            this.pending = null;
            this.onnew(false);
            this.state.textContent = 'Copied.';
        } catch {
            this.box.select();
            this.state.textContent = 'The browser did not allow it. The text is selected: copy it with the keyboard.';
        }
    }

    // paste reads this computer's clipboard; unless asked by the user, only when the browser has been given leave.
    async paste(asked) {
        if (!this.api?.readText || (!asked && !(await this.mayRead()))) {
            return;
        }
        try {
            const text = await this.api.readText();
            if (text) {
                this.box.value = text;
                this.send(text);
                if (asked) {
                    this.state.textContent = 'Sent to the desktop.';
                }
            }
        } catch {
            if (asked) {
                this.state.textContent = 'The browser did not allow it. Paste into the box instead.';
                this.box.focus();
            }
        }
    }

    async mayRead() {
        try {
            return document.hasFocus() && (await navigator.permissions.query({ name: 'clipboard-read' })).state === 'granted';
        } catch {
            return false; // this browser has no such permission
        }
    }
}
