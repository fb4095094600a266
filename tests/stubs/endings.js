// Calls from Node that write without a pause until the mesh ends them, and the reasons that they got.
//
//   node endings.js --target localhost:50050 --calls 4 [--pause-ms 0] [--longer-ms 0] [--bad-after 5]
//
// Prints a line of JSON for each call when it is open ({"handle": ...}) and when it has ended ({"reason": in-band,
// "status": the trailer's}). Half-closes when the reason comes, as docs/protocol.md asks.
'use strict'

const path = require('node:path')
const { parseArgs } = require('node:util')
const grpc = require('@grpc/grpc-js')
const protoLoader = require('@grpc/proto-loader')

const definition = protoLoader.loadSync('moshimesh/gateway/v1/conversation.proto', {
  includeDirs: [path.resolve(__dirname, '../../protos')], keepCase: true, enums: String, longs: Number, oneofs: true,
})
const { ConversationService } = grpc.loadPackageDefinition(definition).moshimesh.gateway.v1
const FRAME = Buffer.alloc(3840)
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms))

async function speak(call, ended, options) {
  for (let sent = 0; !ended.reason; sent++) {
    const pcm = sent === Number(options['bad-after']) ? Buffer.alloc(3) : FRAME
    if (!call.write({ audio: { pcm } })) await Promise.race([new Promise((ok) => call.once('drain', ok)), ended.promise])
    await sleep(Number(options['pause-ms']) + sent * Number(options['longer-ms']))
  }
  call.end()
}

function converse(client, options) {
  return new Promise((resolve) => {
    const ended = { reason: '' }
    ended.promise = new Promise((ok) => { ended.come = ok })
    const call = client.Converse()
    call.on('data', (message) => {
      if (message.response === 'ready') {
        console.log(JSON.stringify({ handle: message.ready.resume_handle }))
        speak(call, ended, options)
      } else if (message.response === 'ended') {
        ended.reason = message.ended.reason
        ended.come()
      }
    })
    call.on('error', (error) => {
      console.log(JSON.stringify({ reason: ended.reason, status: error.metadata.get('moshimesh-reason')[0] ?? '' }))
      ended.reason ||= 'none'
      ended.come()
      resolve()
    })
    call.write({ config: { sample_rate_hertz: 24000, encoding: 'AUDIO_ENCODING_PCM_S16LE', pacing: 'PACING_LIVE' } })
  })
}

const { values } = parseArgs({
  options: {
    target: { type: 'string' }, calls: { type: 'string' }, 'bad-after': { type: 'string', default: '-1' },
    'pause-ms': { type: 'string', default: '0' }, 'longer-ms': { type: 'string', default: '0' },
  },
})
const client = new ConversationService(values.target, grpc.credentials.createInsecure())
Promise.all(Array.from({ length: Number(values.calls) }, () => converse(client, values))).then(() => client.close())
