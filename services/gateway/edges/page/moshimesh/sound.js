/** The caller's devices: microphone in, loudspeaker out, both through one AudioContext and its own thread. */

const PIECE_MS = 20;
const HERE = import.meta.url;

/** What a browser must have, and this one has not; empty when it has everything.
 * @returns {string[]} of 'secure-context', 'audio-worklet', 'microphone', 'websocket'
 */
export function missing() {
  const lacking = [];
  if (!globalThis.isSecureContext) return ['secure-context'];
  if (!globalThis.AudioWorkletNode) lacking.push('audio-worklet');
  if (!navigator.mediaDevices?.getUserMedia) lacking.push('microphone');
  if (!globalThis.WebSocket) lacking.push('websocket');
  return lacking;
}

/** Microphones and loudspeakers; without their names until the microphone was allowed once.
 * @returns {Promise<{microphones: MediaDeviceInfo[], speakers: MediaDeviceInfo[]}>}
 */
export async function devices() {
  const all = await navigator.mediaDevices.enumerateDevices();
  return {microphones: all.filter(one => one.kind === 'audioinput'),
    speakers: all.filter(one => one.kind === 'audiooutput')};
}

/** Events: 'piece' {piece: Float32Array, time}, 'begun' and 'played' {sequence, time}, 'report' (see playback-worklet),
 * 'microphone' {lost: true, id} when the device is gone, 'audible' {audible} when the context starts or stops. Times are
 * the context's, in seconds.
 */
export class Sound extends EventTarget {
  #context;
  #stream = null;
  #source = null;
  #capture = null;
  #playback = null;
  #gain;
  #element = null; // plays on another device than the default where the context itself can't
  #rate;
  #processing;

  /** Must be called in the tap or click that starts the call: else Safari keeps the context silent.
   * @param {number} rate of the mesh's audio, Hz
   * @param {MediaTrackConstraints} processing of the microphone's signal by the browser
   */
  constructor(rate, processing) {
    super();
    this.#rate = rate;
    this.#processing = processing;
    this.#context = new AudioContext({latencyHint: 'interactive'});
    this.#context.resume().catch(() => {}); // no await: it may wait for a tap, see `running`
    this.#context.onstatechange = () => this.#flowing();
    this.#gain = this.#context.createGain();
    this.#gain.connect(this.#context.destination);
    /** For meters and pictures. */
    this.analysers = {microphone: this.#context.createAnalyser(), speaker: this.#context.createAnalyser()};
    this.#gain.connect(this.analysers.speaker);
  }

  /** Open the microphone. Raises what getUserMedia raises: NotAllowedError, NotFoundError, NotReadableError.
   * @param {string} [microphoneId]
   */
  async open(microphoneId) {
    await this.#context.audioWorklet.addModule(new URL('capture-worklet.js', HERE));
    await this.#context.audioWorklet.addModule(new URL('playback-worklet.js', HERE));
    this.#capture = new AudioWorkletNode(this.#context, 'moshimesh-capture', {
      numberOfOutputs: 0, processorOptions: {rate: this.#rate, pieceMs: PIECE_MS}});
    this.#capture.port.onmessage = ({data}) => this.#tell('piece', data);
    await this.setMicrophone(microphoneId);
  }

  /** Be ready to play frames of this length. */
  startPlayback(frameMs) {
    this.#playback = new AudioWorkletNode(this.#context, 'moshimesh-playback', {
      numberOfInputs: 0, outputChannelCount: [1], processorOptions: {rate: this.#rate, frameMs}});
    this.#playback.port.onmessage = ({data}) => this.#tell(data.type, data);
    this.#playback.connect(this.#gain);
  }

  /** Take another microphone, in mid-call too. Raises what getUserMedia raises; the old one stays then. */
  async setMicrophone(id) {
    const stream = await navigator.mediaDevices.getUserMedia({
      audio: {channelCount: 1, ...this.#processing, ...(id ? {deviceId: {exact: id}} : {})}});
    if (this.#context.state === 'closed') {
      stopTracks(stream);
      return;
    }
    this.#release();
    this.#stream = stream;
    const [track] = stream.getAudioTracks();
    track.addEventListener('ended', () => this.#tell('microphone', {lost: true, id: this.microphoneId}));
    this.#source = this.#context.createMediaStreamSource(stream);
    this.#source.connect(this.#capture);
    this.#source.connect(this.analysers.microphone);
  }

  get microphoneId() {
    return this.#stream?.getAudioTracks()[0]?.getSettings().deviceId ?? '';
  }

  /** Whether this browser can play on another device than the default. */
  static get choosesSpeaker() {
    return 'setSinkId' in AudioContext.prototype || 'setSinkId' in HTMLMediaElement.prototype;
  }

  /** Play on this device, in mid-call too. Raises NotFoundError. @param {string} id '' is the default */
  async setSpeaker(id) {
    if ('setSinkId' in this.#context) return this.#context.setSinkId(id);
    if (!this.#element) {
      const out = this.#context.createMediaStreamDestination();
      this.#element = new Audio();
      this.#element.srcObject = out.stream;
      this.#gain.disconnect(this.#context.destination);
      this.#gain.connect(out);
      await this.#element.play();
    }
    return this.#element.setSinkId(id);
  }

  /** @param {boolean} muted the mesh hears silence then */
  mute(muted) {
    this.#capture?.port.postMessage({type: 'mute', muted});
  }

  /** @param {number} volume 0 to 1 */
  setVolume(volume) {
    this.#gain.gain.setTargetAtTime(volume, this.#context.currentTime, 0.02);
  }

  /** @param {object} message to the playback worklet @param {Transferable[]} [transfer] */
  play(message, transfer = []) {
    this.#playback?.port.postMessage(message, transfer);
  }

  /** Whether sound flows. After a reload it may not, until `resume` is called in a tap. */
  get running() {
    return this.#context.state === 'running';
  }

  resume() {
    return this.#context.resume();
  }

  /** Now, on the context's clock; and when what is computed now is heard. */
  get clock() {
    return {now: this.#context.currentTime, latency: (this.#context.outputLatency || this.#context.baseLatency) ?? 0};
  }

  async close() {
    this.#capture?.port.postMessage({type: 'close'});
    this.#playback?.port.postMessage({type: 'close'});
    this.#release();
    if (this.#element) this.#element.srcObject = null;
    if (this.#context.state !== 'closed') await this.#context.close();
  }

  /** A phone call, or a headset that leaves, may stop the context. */
  #flowing() {
    const {state} = this.#context;
    if (state === 'closed') return;
    if (state !== 'running') this.#context.resume().catch(() => {});
    this.#tell('audible', {audible: state === 'running'});
  }

  #release() {
    this.#source?.disconnect();
    if (this.#stream) stopTracks(this.#stream);
    this.#source = this.#stream = null;
  }

  #tell(type, detail) {
    this.dispatchEvent(new CustomEvent(type, {detail}));
  }
}

function stopTracks(stream) {
  for (const track of stream.getTracks()) track.stop();
}
