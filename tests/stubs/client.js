// A conversation with the mesh from Node, with nothing but the .proto files: no Python stubs, no knowledge of ours.
//
//   node client.js [--target localhost:50050] [--wav speech.wav] [--encoding s16|f32] [--chunk-ms 60] [--seed 7]
//     [--greedy]
//
// Prints one line of JSON: what came back, or {"error": {code, reason, message}}. `--rate 16000` announces another
// sample rate than the file's, which the mesh refuses.
'use strict'

const fs = require('node:fs')
const path = require('node:path')
const { Readable } = require('node:stream')
const { pipeline } = require('node:stream/promises')
const { parseArgs } = require('node:util')
const grpc = require('@grpc/grpc-js')
const protoLoader = require('@grpc/proto-loader')

const PROTOS = path.resolve(__dirname, '../../protos')
const REASON_KEY = 'moshimesh-reason' // docs/protocol.md
const ENCODINGS = {
  s16: { name: 'AUDIO_ENCODING_PCM_S16LE', sampleBytes: 2, fromS16: (samples) => samples },
  f32: { name: 'AUDIO_ENCODING_PCM_F32LE', sampleBytes: 4, fromS16: floatsOf },
}

function conversationService() {
  const definition = protoLoader.loadSync('moshimesh/gateway/v1/conversation.proto', {
    includeDirs: [PROTOS], keepCase: true, enums: String, longs: Number, oneofs: true, defaults: true,
  })
  return grpc.loadPackageDefinition(definition).moshimesh.gateway.v1.ConversationService
}

/** The sample rate and the s16le samples of a mono 16 bit WAV. */
function readWav(file) {
  const wav = fs.readFileSync(file)
  let rate = 0
  for (let at = 12; at + 8 <= wav.length;) {
    const kind = wav.toString('latin1', at, at + 4)
    const size = wav.readUInt32LE(at + 4)
    const body = wav.subarray(at + 8, at + 8 + size)
    if (kind === 'fmt ') {
      if (body.readUInt16LE(2) !== 1 || body.readUInt16LE(14) !== 16) throw new Error(`${file}: not mono 16 bit`)
      rate = body.readUInt32LE(4)
    }
    if (kind === 'data') return { rate, samples: body }
    at += 8 + size + (size % 2)
  }
  throw new Error(`${file}: not a WAV file`)
}

function floatsOf(s16) {
  const floats = Buffer.alloc(s16.length * 2)
  for (let i = 0; i < s16.length / 2; i++) floats.writeFloatLE(s16.readInt16LE(i * 2) / 32768, i * 4)
  return floats
}

/** The config, then the audio piece by piece. */
function* requests(config, pcm, chunkBytes) {
  yield { config }
  for (let at = 0; at < pcm.length; at += chunkBytes) yield { audio: { pcm: pcm.subarray(at, at + chunkBytes) } }
}

async function converse(options) {
  const encoding = ENCODINGS[options.encoding]
  const wav = readWav(options.wav)
  const pcm = encoding.fromS16(wav.samples)
  const chunkBytes = Math.round(wav.rate * Number(options['chunk-ms']) / 1000) * encoding.sampleBytes
  const sampling = options.greedy ? { text_temperature: 0, audio_temperature: 0 } : {}
  if (options.seed !== undefined) sampling.seed = Number(options.seed)
  const config = {
    sample_rate_hertz: Number(options.rate ?? wav.rate), encoding: encoding.name, pacing: 'PACING_OFFLINE', sampling,
  }

  const client = new (conversationService())(options.target, grpc.credentials.createInsecure())
  const call = client.Converse({ deadline: Date.now() + 120_000 })
  const answer = { frames: 0, text: '', seconds: 0, ready: null, summary: null, tokens: [] }
  let samples = 0
  try {
    // Sends as fast as the mesh reads (its flow control holds the generator back) and half-closes after the last piece.
    await pipeline(Readable.from(requests(config, pcm, chunkBytes)), call, async (responses) => {
      for await (const message of responses) {
        if (message.response === 'ready') answer.ready = message.ready
        if (message.response === 'summary') answer.summary = message.summary
        if (message.response !== 'speech') continue
        const { speech } = message
        answer.frames += 1
        answer.text += speech.text
        answer.tokens.push([speech.text_token, ...speech.codes])
        samples += speech.pcm.length / encoding.sampleBytes
      }
    })
    return { ...answer, seconds: samples / answer.ready.sample_rate_hertz }
  } catch (error) {
    if (!(error.metadata instanceof grpc.Metadata)) throw error
    return { error: { code: grpc.status[error.code], reason: error.metadata.get(REASON_KEY)[0], message: error.details } }
  } finally {
    client.close()
  }
}

const { values } = parseArgs({
  options: {
    target: { type: 'string', default: 'localhost:50050' },
    wav: { type: 'string', default: path.resolve(__dirname, '../../samples/demo.wav') },
    encoding: { type: 'string', default: 's16' },
    'chunk-ms': { type: 'string', default: '80' },
    rate: { type: 'string' },
    seed: { type: 'string' },
    greedy: { type: 'boolean', default: false },
  },
})
converse(values).then((answer) => console.log(JSON.stringify(answer)), (error) => {
  console.error(`client.js: ${error.message}`)
  process.exitCode = 1
})
