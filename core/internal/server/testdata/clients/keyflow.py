import os

import requests

API_URL = os.environ["BASE"] + "/api/trigger"
headers = {
    'X-API-Key': os.environ["BOUND"],
    'Content-Type': 'application/json'
}

def query(payload):
    response = requests.post(API_URL, headers=headers, json=payload)
    return response.json()

output = query({
  "inputs": {
    "Reference Document": "",
    "undefined": "",
    "Role Context": ""
  }
})
print(output["status"], sorted(output["output"]))
