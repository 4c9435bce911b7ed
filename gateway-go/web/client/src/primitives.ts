import { ed25519 } from "@noble/curves/ed25519.js";
import { sha256 } from "@noble/hashes/sha2.js";

/** What a check is made with. */
export interface Primitives {
  /** Who does it, for the person who reads the result. */
  readonly name: string;
  sha256(data: Uint8Array): Promise<Uint8Array>;
  /** Whether a signature is that of a public key (32 bytes) over a message (RFC 8032). */
  verifyEd25519(key: Uint8Array, signature: Uint8Array, message: Uint8Array): Promise<boolean>;
}

/** A JavaScript library: it works everywhere. */
export const library: Primitives = {
  name: "the page's library (noble)",
  sha256: (data) => Promise.resolve(sha256(data)),
  verifyEd25519: (key, signature, message) => {
    try {
      return Promise.resolve(signature.length === 64 && ed25519.verify(signature, message, key, { zip215: false }));
    } catch {
      return Promise.resolve(false); // not a point of the curve
    }
  },
};

function webCrypto(subtle: SubtleCrypto): Primitives {
  return {
    name: "the browser (WebCrypto)",
    sha256: async (data) => new Uint8Array(await subtle.digest("SHA-256", data as BufferSource)),
    verifyEd25519: async (key, signature, message) => {
      const imported = await subtle.importKey("raw", key as BufferSource, "Ed25519", false, ["verify"]);
      return subtle.verify("Ed25519", imported, signature as BufferSource, message as BufferSource);
    },
  };
}

let chosen: Promise<Primitives> | undefined;

/** WebCrypto where the page is a secure context and the browser knows Ed25519, else the library. */
export function primitives(): Promise<Primitives> {
  chosen ??= (async () => {
    const subtle = globalThis.crypto?.subtle as SubtleCrypto | undefined;
    if (subtle === undefined) {
      return library;
    }
    try {
      const base = new Uint8Array(32).fill(0);
      base[0] = 1; // the neutral element: any key that can be imported will do
      await subtle.importKey("raw", base as BufferSource, "Ed25519", false, ["verify"]);
      return webCrypto(subtle);
    } catch {
      return library;
    }
  })();
  return chosen;
}
