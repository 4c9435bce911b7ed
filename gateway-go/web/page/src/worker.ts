import { Shared } from "./source.js";

/** The shared worker: all pages of one browser share its one stream. */
const shared = new Shared(new URL(".", self.location.href).href);

(self as unknown as { onconnect: (event: MessageEvent) => void }).onconnect = (event) => {
  shared.join(event.ports[0] as MessagePort);
};
