// The state and figures of a gateway on a page of your own, and a picture's answer, proven by this browser.
// Give: page.html?gateway=http://127.0.0.1:8000&key=NAME+ID+KEY; set web.allowed_origins to this page's origin.
import { connectVigil, follow, parseKey, verifyProof } from "@vigil/client";
import { State } from "@vigil/client/gen/vigil/safety/v1/safety_pb.js";

const asked = new URLSearchParams(location.search);
const vigil = connectVigil({ baseUrl: asked.get("gateway") ?? "http://127.0.0.1:8000" });
const show = (id: string, text: string): void => void (document.getElementById(id)!.textContent = text);

follow(vigil, {
  hello: (hello) => show("state", State[hello.state?.state ?? 0] ?? "?"),
  event: (event) => event.state && show("state", State[event.state.state] ?? "?"),
  figures: (f) => show("figures", `${f.models[0]?.answers ?? 0} answers in ${f.intervalMs} ms`),
  connection: (connection, why) => connection !== "live" && show("state", `${connection}: ${why}`),
});

export async function look(picture: Blob, model: string): Promise<void> {
  const { output } = await vigil.perception.detect({
    sourceId: "example", captureTimeUs: BigInt(Date.now()) * 1000n, model, minConfidence: 0.5,
    frame: { content: { case: "encoded", value: new Uint8Array(await picture.arrayBuffer()) } },
  });
  show("boxes", `${output?.boxes.length ?? 0} boxes by ${output?.model} version ${output?.modelVersion}`);
  const p = output?.auditPosition;
  const position = `${p?.log}/${p?.boot}/${p?.sequence}`;
  await new Promise((done) => setTimeout(done, 1000)); // until a checkpoint covers the record
  const { proof } = await vigil.audit.prove({ position });
  show("verdict", (await verifyProof(proof, [await parseKey(asked.get("key") ?? "")], { position })).verdict);
}
Object.assign(globalThis, { look });
